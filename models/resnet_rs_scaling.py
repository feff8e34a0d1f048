"""How ResNet-RS grows: depth or width, resolution and regularisation.

"Revisiting ResNets" (arXiv 2103.07579), sections 5 and 6. The paper's rules:

1. Where overfitting can occur, as in its 350 epochs, scale depth; in runs of
   few epochs, as 10, scale width. At 100 epochs neither is always better.
2. Scale the resolution slowly: from 160 to 320 pixels while the work grows 28
   times.
3. Regularise larger models more, and short runs not at all.

The paper gives no formula. `PUBLISHED` is its table, and `scale` chooses from
it; the widths that `scale` chooses for short runs are those of its study, their
resolution the table's for the same work, which is our reading of rule 2.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

# Blocks of the four stages. 26, 300 and 400 occur in the scaling study only;
# most of what is added goes to the second and third stage.
DEPTHS = {
  26: (2, 2, 2, 2),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
  270: (4, 29, 53, 4),
  300: (4, 36, 54, 4),
  350: (4, 36, 72, 4),
  400: (6, 48, 72, 6),
  420: (4, 44, 87, 4),
}
WIDTH_MULTIPLIERS = (0.25, 0.5, 1.0, 1.5, 2.0)
_WIDTHS = (64, 128, 256, 512)
_STEM_WIDTHS = (32, 32, 64)


@dataclasses.dataclass(frozen=True)
class Setting:
  """A model of a size and what it is trained with.

  Attributes:
    depth: a key of DEPTHS.
    resolution: side of the images in pixels.
    width: multiplier of all widths.
    rand_augment_magnitude: of RandAugment with two layers; None without it.
    stochastic_depth_rate: in the last stage.
    dropout_rate: before the logits.
  """

  depth: int
  resolution: int
  width: float = 1.0
  rand_augment_magnitude: int | None = None
  stochastic_depth_rate: float = 0.0
  dropout_rate: float = 0.0

  def model_fields(self) -> dict[str, Any]:
    """Fields of `models.resnet.ResNet`."""
    return {
      "depths": DEPTHS[self.depth],
      "widths": _scaled(_WIDTHS, self.width),
      "stem_widths": _scaled(_STEM_WIDTHS, self.width),
      "stochastic_depth_rate": self.stochastic_depth_rate,
      "dropout_rate": self.dropout_rate,
    }

  @property
  def multiply_adds(self) -> int:
    """Multiply-adds of convolutions and dense layers for an image.

    With 1000 classes; half of what the paper calls FLOPs.
    """
    return _multiply_adds(DEPTHS[self.depth], self.width, self.resolution)


def regularised(depth: int, resolution: int) -> Setting:
  """Rule 3, as thresholds that agree with the published table."""
  return Setting(
    depth,
    resolution,
    rand_augment_magnitude=10 if resolution <= 160 else 15,
    stochastic_depth_rate=0.1 if depth >= 200 else 0.0,
    dropout_rate=0.4 if resolution >= 320 else 0.25,
  )


# The table's depths and resolutions, in the order of their work.
PUBLISHED = tuple(
  regularised(depth, resolution)
  for depth, resolution in (
    (50, 160),
    (101, 160),
    (101, 192),
    (152, 192),
    (152, 224),
    (152, 256),
    (200, 256),
    (270, 256),
    (350, 256),
    (350, 320),
    (420, 320),
  )
)


def scale(multiply_adds: float, *, epochs: int = 350) -> Setting:
  """Returns the largest setting whose work for an image is within a budget.

  Args:
    multiply_adds: the budget.
    epochs: of ImageNet. From 100 on, depth is scaled, by the published table.
      Below, width is, of a ResNet-50 at the table's resolution for that work,
      without regularisation.

  Raises:
    ValueError: if not even the smallest setting fits, or `epochs` is not
      positive.
  """
  if epochs <= 0:
    raise ValueError(f"epochs is {epochs}; it must be positive")
  fitting = [s for s in PUBLISHED if s.multiply_adds <= multiply_adds]
  if epochs >= 100:
    return _largest(fitting, PUBLISHED[0], multiply_adds)
  resolution = (fitting or PUBLISHED)[-1 if fitting else 0].resolution
  wide = [Setting(50, resolution, width) for width in WIDTH_MULTIPLIERS]
  fitting = [s for s in wide if s.multiply_adds <= multiply_adds]
  return _largest(fitting, wide[0], multiply_adds)


def _largest(
  fitting: Sequence[Setting], smallest: Setting, budget: float
) -> Setting:
  if not fitting:
    raise ValueError(
      f"multiply_adds is {budget:.3g}; the smallest setting, ResNet-RS-"
      f"{smallest.depth} at {smallest.resolution} pixels and width "
      f"{smallest.width:g}, needs {smallest.multiply_adds:.3g}"
    )
  return fitting[-1]


def _scaled(widths: tuple[int, ...], factor: float) -> tuple[int, ...]:
  return tuple(round(width * factor) for width in widths)


def _multiply_adds(
  depths: tuple[int, ...], width: float, resolution: int
) -> int:
  side = -(-resolution // 2)
  first, second, inputs = _scaled(_STEM_WIDTHS, width)
  total = 9 * side**2 * (3 * first + first * second + second * inputs)
  side = -(-side // 2)
  total += 9 * side**2 * inputs**2
  for stage, (f, depth) in enumerate(
    zip(_scaled(_WIDTHS, width), depths, strict=True)
  ):
    outputs, before = 4 * f, side
    side = -(-side // 2) if stage else side
    # The first 1 x 1 convolution comes before the stride.
    total += before**2 * inputs * f + side**2 * inputs * outputs
    total += (depth - 1) * side**2 * outputs * f
    total += depth * (side**2 * (9 * f * f + f * outputs) + 2 * f * outputs)
    inputs = outputs
  return total + inputs * 1000
