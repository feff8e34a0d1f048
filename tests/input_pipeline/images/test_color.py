import colorsys

import numpy as np
import pytest

from input_pipeline.images import color

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def results(transform, image=IMAGE, times=300):
  return [
    transform(image, np.random.default_rng(seed)) for seed in range(times)
  ]


def off(**options):
  """A jitter of nothing but what is given."""
  none = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
  return color.color_jitter(**(none | options))


def test_no_jitter_is_no_change():
  np.testing.assert_array_equal(results(off(), times=1)[0], IMAGE)


def test_brightness_is_a_uniform_factor():
  flat = np.full((2, 2, 3), 100, np.uint8)
  values = [r[0, 0, 0] for r in results(off(brightness=0.4), flat, 2000)]
  assert 59 <= min(values) < 63
  assert 137 < max(values) <= 140
  assert np.mean(values) == pytest.approx(99.5, abs=2)


def test_factors_are_not_negative():
  flat = np.full((2, 2, 3), 100, np.uint8)
  values = [r[0, 0, 0] for r in results(off(brightness=3.0), flat)]
  # Uniform from 0 to 4, and not from -2, which would be black a third of the
  # time.
  assert 0 < np.mean(np.array(values) < 20) < 0.1
  assert max(values) == 255


def fit_factor(result, degenerate, image=IMAGE):
  """The factor of `degenerate + factor * (image - degenerate)`."""
  inside = (result > 0) & (result < 255)
  change = (image - degenerate)[inside]
  factor = np.sum(change * (result - degenerate)[inside]) / np.sum(change**2)
  expected = np.clip(degenerate + factor * (image - degenerate), 0, 255)
  assert np.abs(expected - result).max() <= 3
  return factor


@pytest.mark.parametrize("name", ["contrast", "saturation"])
def test_contrast_and_saturation_move_from_mean_and_grey(name):
  grey = IMAGE @ np.array([0.299, 0.587, 0.114])
  if name == "contrast":
    degenerate = np.full(IMAGE.shape, np.round(grey.mean()))
  else:
    degenerate = np.repeat(grey[..., None], 3, axis=-1)
  factors = [
    fit_factor(result, degenerate) for result in results(off(**{name: 0.5}))
  ]
  assert 0.48 < min(factors) < 0.53
  assert 1.47 < max(factors) < 1.52


def test_hue_turns_the_circle_of_colours():
  # A pure red, of which nothing else can change.
  red = np.zeros((1, 1, 3), np.uint8)
  red[..., 0] = 255
  hues = []
  for result in results(off(hue=0.1), red):
    hue, saturation, value = colorsys.rgb_to_hsv(*(result[0, 0] / 255))
    assert saturation == pytest.approx(1, abs=0.02)
    assert value == pytest.approx(1, abs=0.02)
    hues.append((hue + 0.5) % 1 - 0.5)
  assert -0.11 < min(hues) < -0.09
  assert 0.09 < max(hues) < 0.11


class Fixed:
  """A generator with a given order that draws the largest number."""

  def __init__(self, order):
    self._order = order

  def permutation(self, count):
    assert count == len(self._order)
    return self._order

  def uniform(self, low, high):
    assert low < high
    return high


def test_steps_are_taken_in_the_order_that_was_drawn():
  jitter = color.color_jitter(0.5, 0.4, 0.3, 0.1)
  alone = [off(brightness=0.5), off(contrast=0.4), off(saturation=0.3)]
  alone.append(off(hue=0.1))
  for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0]):
    expected = IMAGE
    for step in order:
      expected = alone[step](expected, Fixed([0]))
    np.testing.assert_array_equal(jitter(IMAGE, Fixed(order)), expected)


def test_three_augment_is_each_of_three_a_third_of_the_time():
  grey = np.round(IMAGE @ np.array([0.299, 0.587, 0.114]))[..., None]
  solarized = np.where(IMAGE < 128, IMAGE, 255 - IMAGE)
  counts = np.zeros(3)
  variances = []
  for result in results(color.three_augment(), times=600):
    if np.abs(result - grey).max() <= 1:
      counts[0] += 1
    elif np.array_equal(result, solarized):
      counts[1] += 1
    else:
      counts[2] += 1
      variances.append(result.var())
      assert result.mean() == pytest.approx(IMAGE.mean(), abs=3)
  # 200 each; the deviation of such a count is 12.
  assert counts.min() > 150
  # The radius goes from almost nothing to many pixels.
  assert max(variances) > 0.9 * IMAGE.var()
  assert min(variances) < 0.15 * IMAGE.var()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(brightness=-1), "brightness is -1, but must be a number from 0"),
    (dict(contrast=-1), "contrast is -1"),
    (dict(saturation=-1), "saturation is -1"),
    (dict(hue=0.6), "hue is 0.6, but must be a number from 0 to 0.5"),
  ],
)
def test_faults(options, message):
  with pytest.raises(ValueError, match=message):
    color.color_jitter(**options)
