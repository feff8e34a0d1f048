import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from input_pipeline import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def test_png_round_trip():
  decoded = decode.decode_image(decode.encode_image(PIXELS))
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, PIXELS)


def test_jpeg_is_close():
  smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
  decoded = decode.decode_image(decode.encode_image(smooth, "jpeg"))
  assert np.abs(decoded.astype(int) - smooth).max() <= 3


def test_converts_channels():
  grey = decode.encode_image(PIXELS[..., :1])
  rgb = decode.decode_image(grey, channels=3)
  np.testing.assert_array_equal(rgb, np.repeat(PIXELS[..., :1], 3, axis=-1))
  back = decode.decode_image(decode.encode_image(PIXELS), channels=1)
  # ITU-R 601-2, which Pillow documents for its conversion to grey.
  expected = PIXELS @ np.array([0.299, 0.587, 0.114])
  assert back.shape == (9, 7, 1)
  assert np.abs(back[..., 0] - expected).max() <= 1


def save_jpeg(mode, size=(40, 27), **options):
  """A smooth random JPEG of a mode of Pillow."""
  pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
  buffer = io.BytesIO()
  image = Image.fromarray(pixels).resize(size).convert(mode)
  image.save(buffer, "jpeg", quality=95, **options)
  return buffer.getvalue()


JPEGS = {
  "ordinary": dict(mode="RGB"),
  "full colour resolution": dict(mode="RGB", subsampling=0),
  "progressive": dict(mode="RGB", progressive=True),
  "RGB inside": dict(mode="RGB", keep_rgb=True),
  "grey": dict(mode="L"),
  "CMYK": dict(mode="CMYK"),
  # Orientation 6, to be turned by 90 degrees, which nobody does in training.
  "EXIF": dict(
    mode="RGB",
    exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
  ),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_jpeg_is_what_pillow_makes_of_it(kind, channels):
  data = save_jpeg(**JPEGS[kind])
  with Image.open(io.BytesIO(data)) as image:
    expected = np.asarray(image.convert({1: "L", 3: "RGB"}[channels]))
  encoded = decode.EncodedImage(data, channels)
  assert encoded.shape == (27, 40, channels)
  decoded = encoded.decode()
  np.testing.assert_array_equal(decoded, expected.reshape(27, 40, channels))


@pytest.mark.parametrize("kind", ["ordinary", "progressive", "grey"])
@pytest.mark.parametrize("divisor", [2, 4, 8])
@pytest.mark.parametrize("size", [(64, 48), (61, 43), (5, 3)])
def test_reduced_jpeg_is_the_mean_of_blocks(kind, divisor, size):
  data = save_jpeg(**JPEGS[kind], size=size)
  encoded = decode.EncodedImage(data)
  assert divisor in encoded.divisors
  reduced = encoded.decode(divisor)
  height, width, _ = encoded.shape
  rows, columns = -(-height // divisor), -(-width // divisor)
  assert reduced.shape == (rows, columns, 3)
  full = encoded.decode().astype(float)
  rows, columns = height // divisor, width // divisor
  blocks = full[: rows * divisor, : columns * divisor]
  blocks = blocks.reshape(rows, divisor, columns, divisor, 3)
  difference = np.abs(blocks.mean(axis=(1, 3)) - reduced[:rows, :columns])
  # The tiny one is all border.
  assert size == (5, 3) or difference.mean() < 4


@pytest.mark.parametrize("kind", ["CMYK", "ordinary"])
def test_only_what_can_be_reduced_is(kind):
  # A grey image of a coloured JPEG is made by Pillow from RGB.
  channels = 3 if kind == "CMYK" else 1
  encoded = decode.EncodedImage(save_jpeg(**JPEGS[kind]), channels)
  assert encoded.divisors == (1,)
  assert decode.EncodedImage(decode.encode_image(PIXELS)).divisors == (1,)


def test_png_with_the_name_of_a_jpeg():
  # One of ImageNet's files; only the bytes tell.
  data = decode.encode_image(PIXELS)
  np.testing.assert_array_equal(decode.decode_image(data), PIXELS)


def test_stray_bytes_are_read_over():
  data = save_jpeg("RGB")
  stray = data[:-2] + bytes(4) + data[-2:]
  with pytest.raises(ValueError, match="extraneous"):
    simplejpeg.decode_jpeg(stray)
  encoded = decode.EncodedImage(stray)
  np.testing.assert_array_equal(encoded.decode(), decode.decode_image(data))
  reduced = decode.EncodedImage(data).decode(4).astype(int)
  assert encoded.decode(4).shape == reduced.shape
  assert np.abs(encoded.decode(4) - reduced).mean() < 4


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("missing", [1, 2, 30])
@pytest.mark.parametrize("divisor", [1, 4])
def test_every_jpeg_without_its_end_raises(kind, missing, divisor):
  data = save_jpeg(**JPEGS[kind])[:-missing]
  encoded = decode.EncodedImage(data)
  with pytest.raises(decode.DamagedImageError, match="do not decode"):
    encoded.decode(min(divisor, encoded.divisors[-1]))


def test_every_flipped_byte_of_a_jpeg_raises_or_decodes():
  data = save_jpeg("RGB", size=(12, 9))
  num_damaged = 0
  for i in range(len(data)):
    flipped = data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :]
    try:
      decode.decode_image(flipped)
    except decode.DamagedImageError:
      num_damaged += 1
  assert num_damaged > 50


def test_a_header_with_an_enormous_size_raises():
  data = save_jpeg("RGB")
  sizes = (27).to_bytes(2, "big") + (40).to_bytes(2, "big")
  assert data.count(sizes) == 1
  with pytest.raises(decode.DamagedImageError, match="decompression bomb"):
    decode.EncodedImage(data.replace(sizes, b"\xf0\x00\xf0\x00"))


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_bytes_raise(encoding, share):
  big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  data = decode.encode_image(big, encoding)
  with pytest.raises(decode.DamagedImageError, match="do not decode"):
    decode.decode_image(data[: int(share * len(data))])


def test_garbage_raises():
  with pytest.raises(decode.DamagedImageError):
    decode.decode_image(b"no image at all")


def test_every_flipped_byte_of_a_png_raises_or_decodes():
  # Pillow raises errors of several kinds; no other may come through.
  data = bytearray(decode.encode_image(PIXELS))
  num_damaged = 0
  for i in range(len(data)):
    flipped = bytes(data[:i]) + bytes([data[i] ^ 0xFF]) + bytes(data[i + 1 :])
    try:
      decode.decode_image(flipped)
    except decode.DamagedImageError:
      num_damaged += 1
  assert num_damaged > len(data) // 2


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_impossible_channels(channels):
  with pytest.raises(ValueError, match="channels"):
    decode.check_channels(channels)
