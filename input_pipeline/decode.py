"""Encoded images to arrays."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg
from absl import logging
from PIL import Image

_MODES = {1: "L", 3: "RGB"}

_JPEG_START = b"\xff\xd8\xff"
# What libjpeg converts to grey and RGB just as Pillow does.
_JPEG_COLORS = {1: ("Gray",), 3: ("Gray", "YCbCr", "RGB")}
_JPEG_DIVISORS = (1, 2, 4, 8)

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
  formats, and JPEGs whose colours simplejpeg does not convert to `channels`.

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
    self._is_jpeg = False
    if data.startswith(_JPEG_START):
      with _report_damage(data):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
      # Of a size that only a damaged header has, Pillow knows what to think.
      self._is_jpeg = (
        colors in _JPEG_COLORS[channels]
        and height * width <= Image.MAX_IMAGE_PIXELS
      )
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
    height, width, channels = self.shape
    if self._is_jpeg:
      try:
        return simplejpeg.decode_jpeg(
          self._data,
          "GRAY" if channels == 1 else "RGB",
          min_height=-(-height // divisor),
          min_width=-(-width // divisor),
          min_factor=divisor,
        )
      except ValueError as error:
        # It complains of stray bytes as of missing ones. Pillow is a second
        # opinion: it reads over the former and refuses the latter.
        logging.debug("simplejpeg: %s; trying Pillow.", error)
    with _report_damage(self._data):
      image = Image.open(io.BytesIO(self._data)).convert(_MODES[channels])
    pixels = np.asarray(image.reduce(divisor))
    return pixels.reshape(*pixels.shape[:2], channels)


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


def encode_image(pixels: np.ndarray, encoding: str = "png") -> bytes:
  """Encodes uint8 `[height, width, 1 or 3]` as "png" or "jpeg"."""
  buffer = io.BytesIO()
  squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
  Image.fromarray(squeezed).save(buffer, encoding)
  return buffer.getvalue()
