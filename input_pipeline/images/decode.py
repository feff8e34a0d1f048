"""Encoded images to arrays."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

_MODES = {1: "L", 3: "RGB"}

_JPEG_START = b"\xff\xd8\xff"
# What libjpeg converts to RGB just as Pillow does.
_JPEG_COLORS = ("Gray", "YCbCr", "RGB")
_JPEG_DIVISORS = (1, 2, 4, 8)
# What libjpeg says of bytes that stand between the image and its end.
_STRAY = "extraneous bytes before marker 0xd9"

# What Pillow's decoders let through when bytes are damaged.
_DECODER_ERRORS = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  IndexError,
  struct.error,
  zlib.error,
  Image.DecompressionBombError,
)


class DamagedImageError(ValueError):
  """The bytes of an image cannot be decoded."""


def check_channels(channels: int) -> None:
  """Raises `ValueError` unless images can be decoded to `channels`."""
  if channels not in _MODES:
    raise ValueError(f"channels is {channels}, but it must be 1 or 3.")


class EncodedImage:
  """An image of which only the header was read.

  libjpeg-turbo, through simplejpeg, decodes JPEGs, as it is the fastest on
  PyPI (benchmarks/results/input_pipeline.md), and Pillow all the rest: other
  formats, and JPEGs of other colours than grey, YCbCr and RGB.

  Attributes:
    shape: height, width and channels of the decoded image.
    divisors: by which `decode` can reduce both sides for less than the cost of
      decoding and resizing.
  """

  def __init__(self, data: bytes, channels: int = 3):
    """Reads the header.

    Args:
      data: a PNG, JPEG or any other format that Pillow knows.
      channels: 1 for grey, 3 for RGB; the image is converted.

    Raises:
      DamagedImageError: if there is no such header.
    """
    self._data = data
    self._is_jpeg = self._is_grey = False
    if data.startswith(_JPEG_START):
      with _report_damage(data):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
      # Of a size that only a damaged header has, Pillow knows what to think.
      self._is_jpeg = (
        colors in _JPEG_COLORS and height * width <= Image.MAX_IMAGE_PIXELS
      )
      self._is_grey = colors == "Gray"
    if not self._is_jpeg:
      with _report_damage(data), Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    self.shape = (height, width, channels)
    self.divisors = _JPEG_DIVISORS if self._is_jpeg else (1,)

  def decode(self, divisor: int = 1) -> np.ndarray:
    """Decodes the whole image.

    Args:
      divisor: one of `divisors`. A pixel (y, x) of the result is the mean of
        the pixels from (y, x) * divisor on, as near as JPEG's cosine transform
        gives it.

    Returns:
      uint8 `[ceil(height / divisor), ceil(width / divisor), channels]`.

    Raises:
      DamagedImageError: if the bytes are truncated or do not decode.
    """
    channels = self.shape[-1]
    with _report_damage(self._data):
      if self._is_jpeg:
        image = self._decode_jpeg(divisor)
        if image.shape[-1] == channels:
          return image
        # Grey as Pillow makes it of RGB: libjpeg's rounds otherwise.
        image = Image.fromarray(image)
      else:
        _check_jpeg_of_other_colors(self._data)
        image = _to_eight_bits(Image.open(io.BytesIO(self._data)))
      pixels = np.asarray(image.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)

  def _decode_jpeg(self, divisor: int) -> np.ndarray:
    """Grey of a grey JPEG if grey is wanted, else RGB."""
    height, width, channels = self.shape
    wanted = "GRAY" if self._is_grey and channels == 1 else "RGB"
    return _decode_whole_jpeg(
      self._data,
      wanted,
      min_height=-(-height // divisor),
      min_width=-(-width // divisor),
      min_factor=divisor,
    )


def _decode_whole_jpeg(data: bytes, *args: Any, **options: Any) -> np.ndarray:
  """What simplejpeg decodes; an error if some of its data is missing.

  libjpeg puts grey in place of missing data, and a warning is all it says.
  Bytes between the last of the data and the end are no damage: it says so in
  its first warning only if there was none of anything before them.
  """
  try:
    return simplejpeg.decode_jpeg(data, *args, **options)
  except ValueError as error:
    if _STRAY not in str(error):
      raise
  return simplejpeg.decode_jpeg(data, *args, strict=False, **options)


def _check_jpeg_of_other_colors(data: bytes) -> None:
  """Raises ValueError for a CMYK JPEG that lacks data, which Pillow reads."""
  if not data.startswith(_JPEG_START):
    return
  height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
  if colors in ("CMYK", "YCCK") and height * width <= Image.MAX_IMAGE_PIXELS:
    _decode_whole_jpeg(data, "CMYK")


def _to_eight_bits(image: Image.Image) -> Image.Image:
  """Grey of more than 8 bits as its upper 8 bits, and other images as they are.

  So libpng and TensorFlow do it. Pillow's own conversion takes what is above
  255 for white.

  Raises:
    ValueError: for numbers of 32 bits, for nobody knows what is white.
  """
  # Pillow opens grey PNM of 16 bits as 32.
  if image.mode.startswith("I;16") or (
    image.mode == "I" and image.format in ("PNG", "PPM")
  ):
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ("I", "F"):
    raise ValueError(
      f"its grey values are {'integers' if image.mode == 'I' else 'floats'} of "
      "32 bits, of which none is known to be white; store 8 or 16 bits"
    )
  return image


@contextlib.contextmanager
def _report_damage(data: bytes) -> Iterator[None]:
  """Turns the errors of decoders into `DamagedImageError`."""
  try:
    yield
  except _DECODER_ERRORS as error:
    raise DamagedImageError(
      f"{len(data)} bytes do not decode: {str(error) or type(error).__name__}"
    ) from error


def decode_image(data: bytes, channels: int = 3) -> np.ndarray:
  """Decodes a whole image; see `EncodedImage` for arguments and errors."""
  return EncodedImage(data, channels).decode()


def encode_image(
  pixels: np.ndarray, encoding: str = "png", quality: int | None = None
) -> bytes:
  """Encodes uint8 `[height, width, 1 or 3]` as "png" or "jpeg".

  Args:
    pixels: the image.
    encoding: which.
    quality: of a JPEG, 1 to 100; Pillow's own, 75, if None.
  """
  buffer = io.BytesIO()
  squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
  options = {} if quality is None else {"quality": quality}
  Image.fromarray(squeezed).save(buffer, encoding, **options)
  return buffer.getvalue()
