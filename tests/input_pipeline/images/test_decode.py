import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from input_pipeline.images import decode

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


def test_only_what_can_be_reduced_is():
  assert decode.EncodedImage(save_jpeg("CMYK")).divisors == (1,)
  assert decode.EncodedImage(save_jpeg("RGB"), 1).divisors == (1, 2, 4, 8)
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
  np.testing.assert_array_equal(encoded.decode(4), reduced)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("share", [0.6, 0.99])
def test_a_jpeg_that_lacks_data_before_its_end_raises(kind, channels, share):
  data = save_jpeg(**JPEGS[kind])
  cut = data[: int(share * len(data))] + data[-2:]
  with pytest.raises(decode.DamagedImageError, match="do not decode"):
    decode.decode_image(cut, channels)
  # Of stray bytes behind the end, even another's end, nobody reads any.
  behind = data + bytes(9) + data[-2:]
  np.testing.assert_array_equal(
    decode.decode_image(behind, channels), decode.decode_image(data, channels)
  )


def draw_levels(channels):
  """All 256 levels in the upper of two bytes, something in the lower."""
  rng = np.random.default_rng(0)
  upper = rng.permutation(256).reshape(16, 16, 1) + np.arange(channels)
  upper %= 256
  lower = rng.integers(0, 256, upper.shape)
  return (upper * 256 + lower).astype(np.uint16), upper.astype(np.uint8)


def save_png(pixels):
  """A PNG of 16 bits, with any of the four numbers of channels."""

  def chunk(name, data):
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

  height, width, channels = pixels.shape
  kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
  header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
  chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
  return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks, chunks.values()))


def save(image, encoding, **options):
  buffer = io.BytesIO()
  image.save(buffer, encoding, **options)
  return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_the_upper_eight(channels):
  pixels, upper = draw_levels(channels)
  decoded = decode.decode_image(save_png(pixels))
  # Transparency is left out, and what is grey is so in all three.
  colors = upper[..., :3] if channels > 2 else upper[..., [0, 0, 0]]
  np.testing.assert_array_equal(decoded, colors)
  grey = decode.decode_image(save_png(pixels), 1)
  expected = colors @ np.array([0.299, 0.587, 0.114])
  assert np.abs(grey[..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
  ("mode", "encoding"),
  [("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "PPM"), ("I;16", "JPEG2000")],
)
def test_grey_of_16_bits_in_other_formats(mode, encoding):
  pixels, upper = draw_levels(1)
  pixels = pixels.astype(">u2" if mode == "I;16B" else "<u2")
  image = Image.frombytes(mode, (16, 16), pixels.tobytes())
  for channels in (1, 3):
    decoded = decode.decode_image(save(image, encoding), channels)
    np.testing.assert_array_equal(decoded, np.repeat(upper, channels, -1))


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_grey_of_32_bits_has_no_known_white(dtype):
  image = Image.fromarray(np.ones((4, 4), dtype))
  with pytest.raises(decode.DamagedImageError, match="none is known to be whi"):
    decode.decode_image(save(image, "TIFF"))


@pytest.mark.parametrize("channels", [1, 3])
def test_fewer_bits_palettes_and_transparency(channels):
  levels = draw_levels(1)[1][..., 0]
  grey = Image.fromarray(levels)
  transparent = Image.merge("LA", [grey, grey.transpose(0)])
  black = Image.fromarray(levels > 127)
  assert black.mode == "1"
  palette = grey.convert("P")
  for image, expected in (
    (transparent, levels),
    (black, 255 * (levels > 127)),
    (palette, levels),
  ):
    options = {"transparency": 7} if image.mode == "P" else {}
    decoded = decode.decode_image(save(image, "PNG", **options), channels)
    np.testing.assert_array_equal(
      decoded, np.repeat(expected[..., None], channels, -1)
    )


def test_of_several_frames_the_first_is_taken():
  frames = [Image.fromarray(np.full((4, 5), v, np.uint8)) for v in (9, 200)]
  data = save(frames[0], "TIFF", save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(decode.decode_image(data), 9)


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
