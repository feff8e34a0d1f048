import numpy as np
import pytest
from PIL import Image

from input_pipeline.images import decode, resizing, transform_spec
from tests import parity_helper

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def apply(transform, image=IMAGE, seed=0):
  return transform(image, np.random.default_rng(seed))


def test_resize_to_half_is_the_mean_of_blocks():
  # Pillow's box-like filters widen; a linear ramp stays one under any of them.
  ramp = np.broadcast_to(
    np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (24, 24, 1)
  )
  half = apply(resizing.resize(12, "bilinear"), np.ascontiguousarray(ramp))
  expected = ramp.reshape(12, 2, 12, 2, 1).mean(axis=(1, 3))
  assert np.abs(half[:, 1:-1] - expected[:, 1:-1]).max() <= 1


def test_center_crop_keeps_the_middle():
  cropped = apply(resizing.center_crop(0.5))
  np.testing.assert_array_equal(cropped, IMAGE[6:18, 12:24])


def test_random_resized_crop_respects_area_and_ratio():
  image = np.zeros((100, 200, 1), np.uint8)
  rng = np.random.default_rng(0)
  shares, ratios = [], []
  for _ in range(500):
    left, top, right, bottom = resizing.sample_box(
      image.shape, (0.2, 0.5), (0.8, 1.25), rng
    )
    assert 0 <= left < right <= 200
    assert 0 <= top < bottom <= 100
    shares.append((right - left) * (bottom - top) / 20000)
    ratios.append((right - left) / (bottom - top))
  assert 0.19 < min(shares) < 0.22
  assert 0.47 < max(shares) < 0.51
  assert 0.78 < min(ratios) < 0.83
  assert 1.2 < max(ratios) < 1.28


def test_random_resized_crop_of_a_strip_takes_its_centre():
  image = np.zeros((10, 1000, 1), np.uint8)
  box = resizing.sample_box(
    image.shape, (0.9, 1.0), (1.0, 1.0), np.random.default_rng(0)
  )
  assert box == (495, 0, 505, 10)


def test_crop_of_everything_is_a_resize():
  crop = resizing.random_resized_crop(12, area=(1.0, 1.0), ratio=(1.5, 1.5))
  np.testing.assert_array_equal(apply(crop), apply(resizing.resize(12)))


def keys_cubic(distance):
  """The cubic kernel of Keys (1981), equation 4, with a = -0.75."""
  a, d = -0.75, np.abs(distance)
  near = (a + 2) * d**3 - (a + 3) * d**2 + 1
  far = a * (d**3 - 5 * d**2 + 8 * d - 4)
  return np.where(d <= 1, near, np.where(d < 2, far, 0))


def triangle(distance):
  return np.maximum(0, 1 - np.abs(distance))


def sampling_matrix(old, new, kernel):
  """The weights `[new, old]` of a filter that does not widen."""
  position = (np.arange(new) + 0.5) * old / new - 0.5
  taps = np.floor(position)[:, None] + np.arange(-1, 3)
  weights = kernel(position[:, None] - taps)
  matrix = np.zeros((new, old))
  # Beyond the border is the border's pixel.
  columns = np.clip(taps, 0, old - 1).astype(int)
  np.add.at(matrix, (np.arange(new)[:, None], columns), weights)
  return matrix


@pytest.mark.parametrize(
  ("method", "kernel"), [("bicubic", keys_cubic), ("bilinear", triangle)]
)
@pytest.mark.parametrize("size", [7, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_without_antialias_pixels_are_sampled(method, kernel, size, channels):
  image = IMAGE[..., :channels]
  down = sampling_matrix(24, size, kernel)
  across = sampling_matrix(36, size, kernel)
  expected = np.einsum("yh,hwc,xw->yxc", down, image.astype(float), across)
  actual = apply(resizing.resize(size, method, antialias=False), image)
  assert np.abs(actual - np.clip(expected, 0, 255)).max() <= 1


def test_antialias_averages_what_sampling_skips():
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 255
  smooth = apply(resizing.resize(16), stripes)
  sampled = apply(resizing.resize(16, antialias=False), stripes)
  assert np.ptp(smooth.astype(int)) < 20
  assert np.ptp(apply(resizing.resize(9, antialias=False), stripes)) > 100
  assert sampled.shape == smooth.shape


def test_resize_center_crop_of_a_square_is_a_part_of_a_resize():
  image = np.ascontiguousarray(IMAGE[:, :24])
  cropped = apply(resizing.resize_center_crop(14, ratio=0.875), image)
  np.testing.assert_array_equal(
    cropped, apply(resizing.resize(16), image)[1:15, 1:15]
  )


def photograph(height, width, seed=0):
  """Noise with the spectrum of photographs, amplitude 1 / frequency."""
  rng = np.random.default_rng(seed)
  frequency = np.hypot(
    np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
  )
  frequency[0, 0] = np.inf
  phases = np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
  planes = np.fft.irfft2(phases / frequency, s=(height, width))
  planes = 128 + 50 * planes / planes.std()
  return np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.fixture
def encoded_jpeg():
  return decode.encode_image(photograph(301, 403), "jpeg")


class Noted(decode.EncodedImage):
  """Notes how far it was reduced."""

  divisor = None

  def decode(self, divisor=1):
    self.divisor = divisor
    return super().decode(divisor)


@pytest.mark.parametrize(
  ("size", "divisor"), [(280, 1), (150, 2), (100, 2), (75, 4), (30, 8)]
)
def test_crop_of_a_jpeg_decodes_no_more_than_it_needs(
  encoded_jpeg, size, divisor
):
  crop = resizing.random_resized_crop(size, area=(0.97, 1), ratio=(1.33, 1.34))
  encoded = Noted(encoded_jpeg)
  rng, same_rng = np.random.default_rng(5), np.random.default_rng(5)
  reduced = crop.decode(encoded, rng)
  assert encoded.divisor == divisor
  full = crop(decode.decode_image(encoded_jpeg), same_rng)
  assert reduced.shape == full.shape == (size, size, 3)
  # The same box was drawn, and nothing more.
  assert rng.random() == same_rng.random()
  difference = reduced.astype(int) - full
  assert abs(difference.mean()) < 0.3
  assert np.abs(difference).mean() < (5 if divisor > 1 else 1e-9)
  # One pixel further it would be much more.
  assert np.abs(reduced[:, 1:].astype(int) - full[:, :-1]).mean() > 15


@pytest.mark.parametrize("seed", range(5))
def test_reduced_crop_has_no_offset(seed):
  # A ramp shows where a crop was taken.
  y, x = np.indices((203, 261))
  ramp = np.stack([y, x * 0.9, 0 * x], axis=-1).astype(np.uint8)
  data = decode.encode_image(ramp, "jpeg")
  crop = resizing.random_resized_crop(20, area=(0.2, 0.9))
  reduced = crop.decode(decode.EncodedImage(data), np.random.default_rng(seed))
  full = apply(crop, ramp, seed)
  difference = reduced.astype(float) - full
  assert np.abs(difference[2:-2, 2:-2].mean(axis=(0, 1))).max() < 0.5


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_crop_that_samples_is_of_the_full_image(encoding):
  data = decode.encode_image(photograph(301, 403), encoding)
  crop = resizing.random_resized_crop(30, antialias=False)
  encoded = Noted(data)
  pixels = crop.decode(encoded, np.random.default_rng(0))
  assert encoded.divisor == 1
  expected = apply(crop, decode.decode_image(data))
  np.testing.assert_array_equal(pixels, expected)


# How docs/training.md says that published models are evaluated.
EVALUATIONS = {
  "maxvit_tiny_tf_224.in1k": "resize_center_crop(ratio=0.95)",
  "maxvit_base_tf_224.in21k": "resize_center_crop(ratio=0.95)",
  "maxvit_tiny_tf_384.in1k": "resize",
  "maxvit_xlarge_tf_512.in21k_ft_in1k": "resize",
  "resnetrs50.tf_in1k": "resize_center_crop(ratio=0.91)",
  "resnetrs101.tf_in1k": "resize_center_crop(ratio=0.94)",
  "resnetrs152.tf_in1k": "resize_center_crop(ratio=1.0)",
  "halonet26t.a1h_in1k": "resize_center_crop(ratio=0.95)",
  "halonet50ts.a1h_in1k": "resize_center_crop(ratio=0.94)",
  "sehalonet33ts.ra2_in1k": "resize_center_crop(ratio=0.94)",
}


@pytest.mark.parity
@pytest.mark.parametrize("model", EVALUATIONS)
@pytest.mark.parametrize("shape", [(375, 500), (467, 311), (97, 241)])
def test_evaluation_is_timms(model, shape):
  _, timm = parity_helper.import_timm()
  from timm.data import transforms_factory

  published = timm.get_pretrained_cfg(model)
  size = published.input_size[-1]
  theirs = transforms_factory.transforms_imagenet_eval(
    size,
    crop_pct=published.crop_pct,
    crop_mode=published.crop_mode,
    interpolation=published.interpolation,
    use_prefetcher=True,
  )
  image = photograph(*shape)
  transform = transform_spec.create_transform(
    EVALUATIONS[model], image_size=size
  )
  expected = np.asarray(theirs(Image.fromarray(image))).transpose(1, 2, 0)
  result = transform({"image": image}, np.random.default_rng(0))["image"]
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("shape", [(375, 500), (467, 311), (97, 241)])
@pytest.mark.parametrize("size", [160, 224])
def test_evaluation_of_the_papers_crops_as_tensorflow(shape, size):
  # EfficientNet's code: the square has int(size / (size + 32) * shorter)
  # pixels, and begins at (length - side + 1) // 2.
  image = photograph(*shape)
  side = int(size / (size + 32) * min(shape))
  top, left = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
  square = image[top : top + side, left : left + side]
  transform = transform_spec.create_transform(
    f"center_crop(ratio={size / (size + 32)})|resize(antialias=False)",
    image_size=size,
  )
  expected = apply(resizing.resize(size, antialias=False), square)
  result = transform({"image": image}, np.random.default_rng(0))["image"]
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
  ("operation", "options", "message"),
  [
    (resizing.resize, dict(size=0), "size is 0"),
    (resizing.resize, dict(size=8.0), "size is 8.0"),
    (resizing.resize, dict(size=8, method="cubic"), "bilinear"),
    (resizing.center_crop, dict(ratio=1.5), "ratio is 1.5"),
    (resizing.resize_center_crop, dict(size=8, ratio=0), "ratio is 0"),
    (resizing.random_resized_crop, dict(size=8, area=(0, 1)), "area is"),
    (resizing.random_resized_crop, dict(size=8, area=(0.5, 2)), "area is"),
    (resizing.random_resized_crop, dict(size=8, ratio=(2, 1)), "ratio is"),
  ],
)
def test_faults(operation, options, message):
  with pytest.raises(ValueError, match=message):
    operation(**options)
