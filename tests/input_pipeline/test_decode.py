import numpy as np
import pytest

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
