import numpy as np
import pytest

from input_pipeline.images import erasing

IMAGE = np.full((60, 80, 3), 7, np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def results(times=300, image=IMAGE, **options):
  transform = erasing.random_erasing(**(dict(probability=1.0) | options))
  return [
    transform(image, np.random.default_rng(seed)) for seed in range(times)
  ]


def find_box(erased):
  """Top, left, height and width of what changed, which is a rectangle."""
  changed = np.any(erased != IMAGE, axis=-1)
  rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
  top, left = rows[0], columns[0]
  height, width = rows[-1] + 1 - top, columns[-1] + 1 - left
  assert changed[top : top + height, left : left + width].mean() > 0.98
  return top, left, height, width


def test_rectangles_have_the_area_and_ratio():
  boxes = np.array([find_box(r) for r in results(fill="mean")])
  tops, lefts, heights, widths = boxes.T
  shares = heights * widths / 4800
  assert 0.018 < shares.min() < 0.03
  assert 0.3 < shares.max() < 0.34
  ratios = heights / widths
  assert 0.27 < ratios.min() < 0.4
  assert 2.5 < ratios.max() < 3.7
  assert tops.min() == 0
  assert (tops + heights).max() == 60
  assert lefts.min() == 0
  assert (lefts + widths).max() == 80


def test_mean_is_zero_after_normalisation():
  erased = results(times=1, fill="mean")[0]
  top, left, _, _ = find_box(erased)
  np.testing.assert_array_equal(erased[top, left], [124, 116, 104])


def test_noise_has_mean_and_deviation_of_normalised_images():
  pixels = []
  for erased in results(area=(0.3, 0.33)):
    top, left, height, width = find_box(erased)
    part = erased[top : top + height, left : left + width]
    pixels.append(part.reshape(-1, 3))
  values = (np.concatenate(pixels) / 255 - MEAN) / STD
  np.testing.assert_allclose(values.mean(axis=0), 0, atol=0.03)
  # Clipping takes a little of the deviation of 1.
  np.testing.assert_allclose(values.std(axis=0), 0.97, atol=0.03)
  # Each channel has its own noise.
  assert abs(np.corrcoef(values.T)[0, 1]) < 0.02


def test_probability():
  erased = results(probability=0.25, times=400)
  share = np.mean([not np.array_equal(r, IMAGE) for r in erased])
  assert share == pytest.approx(0.25, abs=0.08)


def test_what_fits_nowhere_is_left_out():
  strip = np.full((2, 200, 3), 7, np.uint8)
  for result in results(image=strip, area=(0.3, 0.33), times=5):
    np.testing.assert_array_equal(result, strip)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(probability=-0.1), "probability is -0.1"),
    (dict(area=(0.5, 2)), "area is"),
    (dict(area=(0.5, 0.2)), "area is"),
    (dict(ratio=(0, 1)), "ratio is"),
    (dict(fill="black"), "fill is 'black', but must be noise or mean"),
    (dict(mean=(0.5,)), "differ in length"),
    (dict(std=(0.1, -0.1, 0.1)), "std is -0.1, but must be a number from 0"),
    (dict(area=(0.1, 0.2, 0.3)), "area is"),
  ],
)
def test_faults(options, message):
  with pytest.raises(ValueError, match=message):
    erasing.random_erasing(**options)


def test_channels_must_fit_even_where_nothing_is_erased():
  transform = erasing.random_erasing(probability=0.0)
  with pytest.raises(ValueError, match="for 3 channels, but the image has 1"):
    transform(IMAGE[..., :1], np.random.default_rng(0))
