"""Draws what a config feeds the model: a PNG of its first training images.

  python -m tools.show_batch --config=configs/digits.py --output=batch.png

The images are augmented and mixed as in training and written beneath is their
label, of mixtures each class with its share. Normalisation is undone.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags
from matplotlib.figure import Figure

import experiment
import storage
import tasks
from experiment import ranges
from input_pipeline import images
from training import cli

_COLUMNS = 8


def load_batch(
  config: ml_collections.ConfigDict, count: int
) -> dict[str, np.ndarray]:
  """The first images of training, as the model gets them.

  Args:
    config: of a run.
    count: of images.

  Returns:
    image float32 `[count, height, width, channels]` in [0, 1], target float32
    `[count, classes]` without label smoothing, and mask float32 `[count]`.

  Raises:
    ValueError: for a config that does not fit.
  """
  ranges.check(config)
  config = config.copy_and_resolve_references()
  config.loss.label_smoothing = 0.0
  # Nothing is read ahead for a single batch.
  config.data.num_threads = config.data.num_workers = 0
  info = images.dataset_info(config.data)
  batches = images.train_iterator(
    config.data, seed=config.seed, global_batch_size=count
  )
  task = tasks.create(config, info)
  key = jax.random.key(config.seed)
  batch = jax.device_get(task.prepare(key, next(batches)))
  pixels = batch["image"] * np.array(config.data.std, np.float32)
  pixels += np.array(config.data.mean, np.float32)
  return {
    # Rounding of the normalisation may leave [0, 1] by an epsilon.
    "image": np.clip(pixels, 0, 1),
    "target": batch["target"],
    "mask": batch["mask"],
  }


def describe_target(target: np.ndarray, class_names: Sequence[str]) -> str:
  """Names of the classes, the largest share first: "cat 70%, dog 30%"."""
  order = [c for c in np.argsort(-target) if target[c] > 0]
  if len(order) == 1:
    return class_names[order[0]]
  return "\n".join(f"{class_names[c]} {target[c]:.0%}" for c in order)


def draw(
  batch: dict[str, np.ndarray], class_names: Sequence[str], path: str | Path
) -> None:
  """Writes a PNG of what `load_batch` returns."""
  count = len(batch["image"])
  columns = min(count, _COLUMNS)
  rows = -(-count // columns)
  figure = Figure(figsize=(1.5 * columns, 1.9 * rows), layout="constrained")
  panels = figure.subplots(rows, columns, squeeze=False).ravel()
  for panel in panels[count:]:
    panel.axis("off")
  for panel, image, target, mask in zip(
    panels, batch["image"], batch["target"], batch["mask"], strict=False
  ):
    panel.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
    panel.set(xticks=[], yticks=[])
    label = describe_target(target, class_names) if mask else "left out"
    panel.set_xlabel(label, fontsize=8, wrap=True, parse_math=False)
  with storage.path(path).open("wb") as file:
    figure.savefig(file, dpi=100)


def main(argv: Sequence[str]) -> None:
  """Reads the flags and draws."""
  del argv
  args = flags.FLAGS
  if args.images < 1:
    raise ValueError(f"images is {args.images}, but it must be positive.")
  batch = load_batch(args.config, args.images)
  info = images.dataset_info(args.config.data)
  draw(batch, info.class_names, args.output)
  print(args.output)


if __name__ == "__main__":
  cli.define_config_flag(
    experiment.optional_fields, load_run=experiment.load_config
  )
  flags.DEFINE_string("output", None, "Where the PNG goes.")
  flags.DEFINE_integer("images", 32, "How many images to draw.")
  flags.mark_flags_as_required(["config", "output"])
  cli.run(main)
