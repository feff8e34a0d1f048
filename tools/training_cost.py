"""Estimates what training a family's configs on ImageNet costs.

  python -m tools.training_cost maxvit

Chip-hours are the arithmetic of a forward and a backward pass (three times the
multiply-adds of a forward pass, two operations each) for all images of all
epochs, divided by the chip's peak in bfloat16 times the utilisation. They are
estimates: nothing here was run.
"""

import argparse
import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from tools import model_table
from training import durations

IMAGENET_IMAGES = 1_281_167
# Peak of dense matrix products in bfloat16, in FLOP/s, from the vendors' pages.
PEAKS = {"TPU v4": 275e12, "TPU v5e": 197e12, "H100": 989e12, "A100": 312e12}


class Cost(NamedTuple):
  """What a run does.

  Attributes:
    steps: updates.
    flops: of all forward and backward passes.
  """

  steps: int
  flops: float

  def chip_hours(self, chip: str, utilisation: float) -> float:
    """Hours on one chip at this share of its peak."""
    return self.flops / (PEAKS[chip] * utilisation) / 3600


def estimate(
  config: ml_collections.ConfigDict, images: int = IMAGENET_IMAGES
) -> Cost:
  """Estimates a run from its model, image size, batch size and length."""
  clock = durations.Clock(images, config.batch_size)
  steps = clock.steps(config.train_for, "train_for")
  multiply_adds = _multiply_adds(config.model.name, config.data.image_size)
  return Cost(steps, 3 * 2 * multiply_adds * steps * config.batch_size)


@functools.cache
def _multiply_adds(name: str, size: int) -> float:
  return 1e9 * model_table.describe(name, size)["multiply-adds G"]


def write_markdown(family: str, utilisation: float) -> None:
  """Prints a row for each config of a family that trains on ImageNet-1k."""
  recipes = importlib.import_module(f"configs.{family}")
  chips = [f"{chip} hours" for chip in PEAKS]
  print("| config | steps | EFLOP |", " | ".join(chips), "|")
  print("|---" * (3 + len(chips)) + "|")
  for variant in recipes.VARIANTS:
    config = recipes.get_config(variant)
    if config.data.name == "imagenet2012":
      cost = estimate(config)
      print("|", " | ".join(_cells(variant, cost, utilisation)), "|")


def _cells(variant: str, cost: Cost, utilisation: float) -> list[Any]:
  hours = [f"{cost.chip_hours(chip, utilisation):,.0f}" for chip in PEAKS]
  return [variant, f"{cost.steps:,}", f"{cost.flops / 1e18:,.0f}", *hours]


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("family", choices=["halonet", "maxvit", "resnet_rs"])
  parser.add_argument("--utilisation", type=float, default=0.4)
  args = parser.parse_args(argv)
  if not 0 < args.utilisation <= 1:
    parser.error(f"utilisation is {args.utilisation}; it must be in (0, 1]")
  write_markdown(args.family, args.utilisation)


if __name__ == "__main__":
  main()
