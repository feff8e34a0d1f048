"""Each operation against the formulas of TensorFlow's code, in NumPy."""

import numpy as np
import pytest

from input_pipeline.images import tf_operations, transforms

RNG = np.random.default_rng(0)
# Wider than high, and not of all values, so that contrast can be stretched.
IMAGE = RNG.integers(20, 221, (24, 36, 3), dtype=np.uint8)
STRENGTH = tf_operations.Strength(translate=100, cutout=40)
FILL = 128


class Signs:
  """A generator that only ever draws one sign, or given integers."""

  def __init__(self, sign, integers=None):
    self._uniform = 0.25 if sign > 0 else 0.75
    self._integers = integers

  def random(self):
    return self._uniform

  def integers(self, high):
    assert all(0 <= i < h for i, h in zip(self._integers, high, strict=True))
    return np.array(self._integers)


def apply(name, level, image=IMAGE, rng=None, strength=STRENGTH):
  operation = tf_operations.OPERATIONS[name]
  result = operation(transforms.to_pil(image), level, strength, rng or Signs(1))
  return transforms.to_array(result)


def truncate(values):
  """A cast of float to uint8 after clipping."""
  return np.clip(values, 0, 255).astype(np.uint8)


def blend(degenerate, image, factor):
  degenerate = degenerate.astype(np.float64)
  return truncate(degenerate + factor * (image - degenerate))


def grey(image):
  return np.round(image @ np.array([0.299, 0.587, 0.114]))[..., None]


def assert_close(actual, expected, tolerance=0):
  difference = np.abs(actual.astype(int) - expected.astype(int))
  assert difference.max() <= tolerance


def test_there_are_the_sixteen_of_the_paper():
  assert len(tf_operations.OPERATIONS) == 16


def test_invert():
  assert_close(apply("Invert", 15), 255 - IMAGE)


def test_auto_contrast_stretches_each_channel():
  low, high = IMAGE.min(axis=(0, 1)), IMAGE.max(axis=(0, 1))
  scale = 255 / (high - low)
  assert_close(apply("AutoContrast", 15), truncate((IMAGE - low) * scale), 1)
  flat = np.full((4, 4, 3), 7, np.uint8)
  assert_close(apply("AutoContrast", 15, flat), flat)


def test_equalize_follows_the_cumulative_histogram():
  # Large enough that the step, pixels / 255, is not 0.
  image = (RNG.normal(100, 25, (64, 64, 3)).clip(0, 255)).astype(np.uint8)
  expected = np.empty_like(image)
  for c in range(3):
    counts = np.bincount(image[..., c].ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    table = (np.cumsum(counts) + step // 2) // step
    table = np.clip(np.concatenate([[0], table[:-1]]), 0, 255)
    expected[..., c] = table[image[..., c]]
  assert_close(apply("Equalize", 15, image), expected)


@pytest.mark.parametrize(
  ("level", "bits"), [(0, 0), (2, 0), (5, 2), (10, 4), (15, 6), (25, 8)]
)
def test_posterize_keeps_bits(level, bits):
  # Shifting a wide type by 8 gives 0.
  kept = (IMAGE.astype(int) >> (8 - bits) << (8 - bits)).astype(np.uint8)
  assert_close(apply("Posterize", level), kept)


@pytest.mark.parametrize(("level", "threshold"), [(0, 0), (4, 102), (9, 230)])
def test_solarize_inverts_from_a_threshold_on(level, threshold):
  expected = np.where(threshold > IMAGE, IMAGE, 255 - IMAGE)
  assert_close(apply("Solarize", level), expected)


def test_solarize_at_15_does_nothing():
  assert_close(apply("Solarize", 15), IMAGE)


@pytest.mark.parametrize(("level", "added"), [(3, 33), (7, 77), (15, 165)])
def test_solarize_add_adds_to_dark_values(level, added):
  expected = np.where(IMAGE < 128, truncate(IMAGE.astype(int) + added), IMAGE)
  assert_close(apply("SolarizeAdd", level), expected)


@pytest.mark.parametrize(("level", "factor"), [(0, 0.1), (5, 1.0), (15, 2.8)])
class TestEnhancements:
  def test_color_moves_from_grey(self, level, factor):
    expected = blend(np.broadcast_to(grey(IMAGE), IMAGE.shape), IMAGE, factor)
    # The grey is rounded, and the error is then scaled.
    assert_close(apply("Color", level), expected, 3)

  def test_brightness_moves_from_black(self, level, factor):
    expected = blend(np.zeros_like(IMAGE), IMAGE, factor)
    assert_close(apply("Brightness", level), expected, 1)

  @pytest.mark.parametrize(("side", "level_of_grey"), [(224, 196), (300, 255)])
  def test_contrast_moves_from_pixels_by_256(
    self, level, factor, side, level_of_grey
  ):
    image = RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)
    expected = blend(np.full_like(image, level_of_grey), image, factor)
    assert_close(apply("Contrast", level, image), expected, 1)

  def test_sharpness_moves_from_smooth(self, level, factor):
    padded = np.pad(IMAGE.astype(float), ((1, 1), (1, 1), (0, 0)))
    total = sum(
      padded[y : y + 24, x : x + 36] for y in range(3) for x in range(3)
    )
    smooth = np.round((total + 4.0 * IMAGE) / 13)
    border = np.ones(IMAGE.shape[:2], bool)
    border[1:-1, 1:-1] = False
    smooth[border] = IMAGE[border]
    assert_close(apply("Sharpness", level), blend(smooth, IMAGE, factor), 3)


def warp(matrix, image=IMAGE):
  """The nearest pixel at `matrix @ (x, y, 1)`, and where there is just one."""
  height, width, _ = image.shape
  y, x = np.indices((height, width))
  position = np.einsum("ij,jhw->ihw", matrix, [x, y, np.ones_like(x)]) + 0.5
  columns, rows = np.floor(position).astype(int)
  inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
  result = np.full_like(image, FILL)
  result[inside] = image[rows[inside], columns[inside]]
  # Halfway between two pixels either one is right.
  return result, np.all(np.abs(position - np.round(position)) > 1e-3, axis=0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [0, 1.3, 4, 15])
class TestWarps:
  def check(self, name, level, sign, matrix):
    actual = apply(name, level, rng=Signs(sign))
    expected, certain = warp(np.array(matrix))
    assert certain.mean() > 0.9
    assert_close(actual[certain], expected[certain])

  def test_shear_x(self, level, sign):
    shear = sign * 0.03 * level
    self.check("ShearX", level, sign, [[1, shear, 0], [0, 1, 0]])

  def test_shear_y(self, level, sign):
    shear = sign * 0.03 * level
    self.check("ShearY", level, sign, [[1, 0, 0], [shear, 1, 0]])

  def test_translate_x(self, level, sign):
    self.check(
      "TranslateX", level, sign, [[1, 0, sign * 10 * level], [0, 1, 0]]
    )

  def test_translate_y(self, level, sign):
    self.check(
      "TranslateY", level, sign, [[1, 0, 0], [0, 1, sign * 10 * level]]
    )

  def test_rotate_turns_around_the_centre(self, level, sign):
    angle = np.radians(3 * level * sign)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (36 - 1) / 2, (24 - 1) / 2
    matrix = [
      [cos, -sin, x - cos * x + sin * y],
      [sin, cos, y - sin * x - cos * y],
    ]
    self.check("Rotate", level, sign, matrix)


@pytest.mark.parametrize("centre", [(0, 0), (12, 20), (23, 35)])
@pytest.mark.parametrize(("level", "half"), [(0.1, 0), (1, 4), (15, 60)])
def test_cutout_is_a_grey_square_cut_off_at_the_border(level, half, centre):
  rows, columns = np.indices(IMAGE.shape[:2])
  inside = (
    (rows >= centre[0] - half)
    & (rows < centre[0] + half)
    & (columns >= centre[1] - half)
    & (columns < centre[1] + half)
  )
  expected = np.where(inside[..., None], FILL, IMAGE)
  assert_close(apply("Cutout", level, rng=Signs(1, centre)), expected)


def test_increasing_levels_start_at_no_change():
  strength = tf_operations.Strength(100, 40, increasing=True)
  options = dict(level=0, strength=strength)
  for name in ("Color", "Contrast", "Brightness", "Sharpness", "Solarize"):
    assert_close(apply(name, **options), IMAGE)
  # timm, too, keeps 4 bits at level 0.
  assert_close(apply("Posterize", **options), IMAGE & 0xF0)


@pytest.mark.parametrize("level", [2, 9, 15])
@pytest.mark.parametrize("sign", [1, -1])
def test_increasing_levels(level, sign):
  options = dict(
    level=level, strength=tf_operations.Strength(100, 40, increasing=True)
  )
  factor = max(0.1, 1 + sign * 0.09 * level)
  brighter = apply("Brightness", rng=Signs(sign), **options)
  assert_close(brighter, blend(np.zeros_like(IMAGE), IMAGE, factor), 1)
  threshold = 256 - int(25.6 * level)
  solarized = np.where(threshold > IMAGE, IMAGE, 255 - IMAGE)
  assert_close(apply("Solarize", **options), solarized)
