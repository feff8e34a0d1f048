"""Images that a masked autoregressive model makes, as a grid to look at."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TextIO

import flax.linen as nn
import jax
import numpy as np
import tqdm

import storage
from models import decoding, masked_sampling
from tasks import image_grids, image_options, mesh_rows
from tasks.base import Progress
from tasks.image_decoding import Decode

# Options of `draw` for `sample.py`: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "classes": (
    "first",
    'Which, a row each, as "3,5" or "0..9", or all; first: the first ten. Of '
    "a model of texts, which texts.",
  ),
  "text": (
    "",
    "A file of encoded texts, for a model of texts; empty: that of its "
    "training.",
  ),
  "num_samples": (10, "How many images of each."),
  "seed": (0, "The same seed makes the same images."),
  "guidance": (
    "",
    "How much is added of what the class changes, a number or one for each "
    "step, as 1,2,3; empty: as the run's config says.",
  ),
  "steps": (0, "Steps that tokens come in; 0: as the run's config says."),
  "flow_steps": (
    0,
    "Steps from noise to a token; 0: as the run's config says.",
  ),
  "out": ("samples.png", "The picture to write."),
  "animation": ("", "A .gif or .png of the order of tokens to write."),
}
_BATCH = 128


class Made(NamedTuple):
  """Images, and when their tokens were made.

  Attributes:
    images: uint8 [batch, height, width, channels].
    order: int32 [batch, N]; see `masked_sampling.Samples`.
  """

  images: np.ndarray
  order: np.ndarray


def draw(
  model: nn.Module,
  variables: Mapping[str, Any],
  decode: Decode,
  *,
  sampling: Mapping[str, Any],
  classes: str = OPTIONS["classes"][0],
  text: str = "",
  num_samples: int = OPTIONS["num_samples"][0],
  seed: int = 0,
  guidance: str = "",
  steps: int = 0,
  flow_steps: int = 0,
  out: str = OPTIONS["out"][0],
  animation: str = "",
  batch_size: int = _BATCH,
  progress: Progress | None = None,
  output: TextIO | None = None,
) -> None:
  """Writes a picture with a row of images for each class or text.

  Args:
    model: as `models.masked_sampling` needs it.
    variables: its variables.
    decode: makes images of tokens; see `tasks.image_decoding`.
    sampling: options of `masked_sampling.sample` where none is given here.
    classes: as in OPTIONS; likewise all that follow.
    text: a file.
    num_samples: images a row.
    seed: of the draws.
    guidance: a number or several.
    steps: 0 for that of `sampling`.
    flow_steps: likewise.
    out: a .png.
    animation: a .gif or .png, or none.
    batch_size: the most images at a time.
    progress: what is shown of it; a bar on standard error if None.
    output: where it says what it wrote; standard output if None.

  Raises:
    ValueError: for an option that does not fit, before any image is made.
  """
  file = image_options.check_file("out", out, (".png",))
  if animation:
    animated = image_options.check_file(
      "animation", animation, (".gif", ".png")
    )
  masked_sampling.check_count("num_samples", num_samples)
  given, lengths, rows = image_options.choose(model, classes, text)
  sampling = dict(sampling) | {"seed": seed}
  sampling |= {
    name: value
    for name, value in (("steps", steps), ("flow_steps", flow_steps))
    if value
  }
  if guidance:
    sampling["guidance"] = image_options.parse_guidance(guidance)
  if lengths is not None:
    lengths = lengths.repeat(num_samples)
  made = list(
    batches(
      model,
      variables,
      given.repeat(num_samples, axis=0),
      decode,
      lengths=lengths,
      batch_size=batch_size,
      progress=_bar if progress is None else progress,
      **sampling,
    )
  )
  if jax.process_index() != 0:
    return
  shape = len(rows), num_samples
  images, order = (
    np.concatenate(parts).reshape(*shape, *parts[0].shape[1:])
    for parts in zip(*made, strict=True)
  )
  storage.write_whole(
    file, image_grids.encode([image_grids.grid(images)], ".png")
  )
  if animation:
    frames = image_grids.frames(images, order, model.grid)
    storage.write_whole(animated, image_grids.encode(frames, animated.suffix))
  what = "texts" if model.text_width else "classes"
  print(
    f"{' and '.join(filter(None, (out, animation)))}: a row each of {what} "
    f"{', '.join(map(str, rows))}",
    file=sys.stdout if output is None else output,
  )


def images(
  model: nn.Module,
  variables: Mapping[str, Any],
  given: np.ndarray,
  decode: Decode,
  **options: Any,
) -> np.ndarray:
  """Makes an image of each row of `given`; see `batches`.

  Returns:
    uint8 [rows, height, width, channels].
  """
  made = batches(model, variables, given, decode, **options)
  return np.concatenate([batch.images for batch in made])


def batches(
  model: nn.Module,
  variables: Mapping[str, Any],
  given: np.ndarray,
  decode: Decode,
  *,
  lengths: np.ndarray | None = None,
  steps: int = 64,
  batch_size: int = _BATCH,
  progress: Progress = lambda items, total: items,
  **sampling: Any,
) -> Iterator[Made]:
  """Makes images, some at a time.

  Image i of a seed is the same however many there are, but for rounding where
  batches have another size. The rows of a batch are split over the mesh that
  the variables are on.

  Args:
    model: as `models.masked_sampling` needs it.
    variables: its variables.
    given: classes, integers [rows], or texts [rows, tokens, width].
    decode: makes images of tokens; see `tasks.image_decoding`.
    lengths: integers [rows], of texts.
    steps: as in `masked_sampling.sample`.
    batch_size: the most images at a time.
    progress: takes an iterable and its length, and returns one like it.
    **sampling: further options of `masked_sampling.sample`.

  Yields:
    Images and their order, in the order of `given`.

  Raises:
    ValueError: as `masked_sampling.sample`, or if there are no rows.
  """
  if not len(given):
    raise ValueError("given has no rows: nothing to make images of.")
  masked_sampling.check_count("batch_size", batch_size)
  mesh = decoding.mesh_of(variables)
  size = mesh_rows.whole_batch(min(batch_size, len(given)), mesh)
  starts = range(0, len(given), size)
  count = len(starts) * len(masked_sampling.schedule(_places(model), steps))
  bar = iter(progress(range(count), count))
  for start in starts:
    rows = np.arange(start, start + size) % len(given)
    tokens, order = masked_sampling.sample(
      model,
      variables,
      mesh_rows.place(given[rows], mesh),
      lengths=None if lengths is None else mesh_rows.place(lengths[rows], mesh),
      steps=steps,
      first_row=start,
      # The bar is one over all batches.
      progress=lambda items, _: (
        item for item, _ in zip(items, bar, strict=False)
      ),
      **sampling,
    )
    real = len(given) - start
    yield Made(
      *(mesh_rows.whole(array)[:real] for array in (decode(tokens), order))
    )
  # Where it says that it is at its end.
  next(bar, None)


def _bar(steps, total):
  # None: no bar where nobody watches a terminal.
  disable = None if jax.process_index() == 0 else True
  return tqdm.tqdm(steps, "sampling", total, unit="step", disable=disable)


def _places(model: nn.Module) -> int:
  return int(np.prod(model.grid))
