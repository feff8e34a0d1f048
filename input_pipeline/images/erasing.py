"""Random erasing, https://arxiv.org/abs/1708.04896."""

import math

import numpy as np

from input_pipeline import checks
from input_pipeline.images import transforms

FILLS = ("noise", "mean")


def random_erasing(
  probability: float = 0.25,
  area: tuple[float, float] = (0.02, 1 / 3),
  ratio: tuple[float, float] = (0.3, 10 / 3),
  fill: str = "noise",
  mean: tuple[float, ...] = (0.485, 0.456, 0.406),
  std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> transforms.Transform:
  """Overwrites a random rectangle, sometimes.

  timm erases images that are normalised already, and fills with noise of mean
  0 and deviation 1. Here they are normalised later, so the noise gets the mean
  and deviation that will be taken out; it is clipped to what a uint8 holds.

  Args:
    probability: that anything is erased.
    area: least and greatest share of the image's area. As in timm, ten tries
      are made to find a rectangle that fits.
    ratio: least and greatest height / width, log-uniform.
    fill: "noise" for each pixel and channel, or "mean".
    mean: a number for each channel, of values in [0, 1].
    std: likewise.

  Raises:
    ValueError: for an impossible option; from the transform, for images with
      another number of channels.
  """
  checks.check_probability(probability)
  checks.check_interval("area", area)
  checks.check_interval("ratio", ratio)
  if area[1] > 1:
    raise ValueError(f"area is {area}, but no part is larger than 1.")
  if fill not in FILLS:
    raise ValueError(f"fill is {fill!r}, but must be {' or '.join(FILLS)}.")
  if len(mean) != len(std):
    raise ValueError(f"mean={mean} and std={std} differ in length.")
  for name, values in (("mean", mean), ("std", std)):
    for value in values:
      checks.check_number(name, value)
  scales = np.array(std) * (fill == "noise")

  def apply(image, rng):
    if image.shape[2] != len(mean):
      raise ValueError(
        f"mean={mean} and std={std} are for {len(mean)} channels, but the image"
        f" has {image.shape[2]}."
      )
    if rng.random() >= probability:
      return image
    box = _sample_rectangle(image.shape, area, ratio, rng)
    if box is None:
      return image
    rows, columns = box
    erased = image.copy()
    part = erased[rows, columns]
    values = rng.normal(mean, scales, size=part.shape)
    part[...] = np.clip(np.round(255 * values), 0, 255)
    return erased

  return apply


def _sample_rectangle(
  shape: tuple[int, ...],
  area: tuple[float, float],
  ratio: tuple[float, float],
  rng: np.random.Generator,
) -> tuple[slice, slice] | None:
  """Rows and columns of a rectangle, or None if none was found."""
  image_height, image_width, _ = shape
  for _ in range(10):
    target = rng.uniform(*area) * image_height * image_width
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    height = round(math.sqrt(target * aspect))
    width = round(math.sqrt(target / aspect))
    if height < image_height and width < image_width:
      top = int(rng.integers(0, image_height - height, endpoint=True))
      left = int(rng.integers(0, image_width - width, endpoint=True))
      return slice(top, top + height), slice(left, left + width)
  return None
