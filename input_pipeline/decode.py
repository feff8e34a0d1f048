"""Encoded images to arrays."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_MODES = {1: "L", 3: "RGB"}

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


def decode_image(data: bytes, channels: int = 3) -> np.ndarray:
  """Decodes a PNG, JPEG or any other format that Pillow knows.

  Args:
    data: the encoded image.
    channels: 1 for grey, 3 for RGB; the image is converted.

  Returns:
    uint8 `[height, width, channels]`.

  Raises:
    DamagedImageError: if the bytes are truncated or no image.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      pixels = np.asarray(image.convert(_MODES[channels]))
  except _DECODER_ERRORS as error:
    raise DamagedImageError(
      f"{len(data)} bytes do not decode: {str(error) or type(error).__name__}"
    ) from error
  return pixels.reshape(*pixels.shape[:2], channels)


def encode_image(pixels: np.ndarray, encoding: str = "png") -> bytes:
  """Encodes uint8 `[height, width, 1 or 3]` as "png" or "jpeg"."""
  buffer = io.BytesIO()
  squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
  Image.fromarray(squeezed).save(buffer, encoding)
  return buffer.getvalue()
