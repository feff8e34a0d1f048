"""Images and videos that a diffusion model makes, as arrays and as pictures."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import generation
import storage
from attention import checks
from generation import methods, solvers
from generation.paths import Path
from models import decoding
from tasks import (
  diffusion_options,
  diffusion_rework,
  image_grids,
  image_options,
  mesh_rows,
)
from tasks.base import Progress
from tasks.image_decoding import Decode

# Options of `draw` for `sample.py`: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "classes": (
    "first",
    'Which, a row each, as "3,5" or "0..9", or all; first: the first ten; of '
    'samples with several classes "0+7,3+3"; of a model of texts, which texts.',
  ),
  "text": (
    "",
    "A file of encoded texts, for a model of texts; empty: that of its "
    "training.",
  ),
  "num_samples": (0, "How many of each; 0: ten images, or one video."),
  "seed": (0, "The same seed makes the same samples."),
  "guidance": (
    "",
    "How much is added of what the class changes, 1 is nothing; empty: as the "
    "run's config says.",
  ),
  "steps": (0, "Steps from noise to a sample; 0: as the run's config says."),
  "solver": (
    "",
    f"One of {', '.join(solvers.SOLVERS)}; empty: as the run's config says.",
  ),
  "method": (
    "full",
    "What becomes of the model's attention while it samples: one of "
    f"{', '.join(methods.METHODS)}; docs/diffusion.md has a line on each.",
  ),
  "method_options": (
    "",
    'Options of the method, as "decay=0.5,window=(2,2)". With '
    '--method=scale_dit "window=4,scale=2" makes samples of half the --size '
    "first, which the large ones then see.",
  ),
  "size": (
    "",
    'Sides of samples, as "16x16", or with the frames "8x16x16"; empty: as in '
    "training.",
  ),
  "out": ("samples.png", "The picture to write: of a video, all its frames."),
  "animation": (
    "",
    "A .gif or .png to write: how images came out of noise, or videos as they "
    "move.",
  ),
  **diffusion_rework.OPTIONS,
}
_BATCH = 128
# Milliseconds of a frame of a video.
_FRAME = 125


def samples(
  model: nn.Module,
  variables: Mapping[str, Any],
  path: Path,
  condition: Mapping[str, np.ndarray],
  *,
  rows: int,
  steps: int = 25,
  guidance: float = 1.0,
  solver: str = "ddim",
  seed: int = 0,
  method: str = "full",
  method_options: Mapping[str, Any] | None = None,
  size: tuple[int, ...] | None = None,
  batch_size: int = _BATCH,
  progress: Progress = lambda items, total: items,
  watch: Callable[[jax.Array], None] | None = None,
) -> np.ndarray:
  """Makes samples, some at a time.

  Sample i of a seed begins with the same noise however many there are and
  whatever the method, so that those of two methods compare one by one.

  Args:
    model: as `models.diffusion_transformer` has them.
    variables: of the model; work is split over the mesh that they are on.
    path: that it was trained on.
    condition: by name, "label" [rows] or [rows, labels], or "text" and
      "text_length"; empty for a model without.
    rows: how many samples.
    steps: from noise to data.
    guidance: w of u + w (c - u); 1 is the condition alone.
    solver: a name of `generation.SOLVERS`.
    seed: of the noise.
    method: a name of `generation.methods.METHODS`.
    method_options: of the method.
    size: sides of a sample; those of training if None.
    batch_size: the most samples at a time.
    progress: takes an iterable and its length, and returns one like it.
    watch: is given x [batch, ...] after each step.

  Returns:
    float32 [rows, *size, channels], data about -1 to 1.

  Raises:
    ValueError: for what does not fit, before any step.
  """
  checks.whole("rows", rows, 1)
  checks.whole("batch_size", batch_size, 1)
  changed = methods.create(method, model, steps, method_options or {})
  if changed.guided and guidance == 1:
    raise ValueError(
      f"method {method!r} with {dict(method_options or {})} is for samples "
      "with guidance, and guidance is 1, which has no half without a condition"
    )
  sides = tuple(size or model.sample_shape)
  small = changed.small
  if small and any(side % small.factor for side in sides):
    raise ValueError(
      f"size={sides} must be multiples of {small.factor}, as method {method!r} "
      "makes samples so many times smaller first."
    )
  mesh = decoding.mesh_of(variables)
  batch = mesh_rows.whole_batch(min(batch_size, rows), mesh)
  starts = range(0, rows, batch)
  count = len(starts) * steps * (2 if small else 1)
  bar = iter(progress(range(count), count))
  made = []
  for start in starts:
    taken = np.arange(start, start + batch)
    given = {
      name: mesh_rows.place(array[taken % rows], mesh)
      for name, array in condition.items()
    }

    def make(models, sides, taken=taken, given=given, **options):
      noise = _noise(seed, taken, (*sides, model.channels))
      return generation.sample(
        [
          generation.create_denoiser(
            each, variables, **given, guidance=guidance
          )
          for each in models
        ],
        mesh_rows.place(noise, mesh),
        path,
        steps=steps,
        solver=solver,
        # The bar is one over all batches.
        progress=lambda items, _: (
          item for item, _ in zip(items, bar, strict=False)
        ),
        **options,
      )

    state = None
    if small:
      image = make([model], [side // small.factor for side in sides])
      state = small.state(variables, image, **given, guidance=guidance)
    x = make(
      changed.models, sides, which=changed.which, state=state, watch=watch
    )
    made.append(mesh_rows.whole(x)[: rows - start])
  # Where it says that it is at its end.
  next(bar, None)
  return np.concatenate(made)


def _noise(seed: int, rows: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal numbers, of each row a function of seed and row."""
  draw = lambda row: jax.random.normal(
    jax.random.fold_in(jax.random.key(seed), row), shape
  )
  return jax.vmap(draw)(jnp.asarray(rows))


def draw(
  model: nn.Module,
  variables: Mapping[str, Any],
  path: Path,
  decode: Decode,
  *,
  sampling: Mapping[str, Any],
  classes: str = OPTIONS["classes"][0],
  text: str = "",
  num_samples: int = 0,
  seed: int = 0,
  guidance: str = "",
  steps: int = 0,
  solver: str = "",
  method: str = "full",
  method_options: str = "",
  size: str = "",
  out: str = OPTIONS["out"][0],
  animation: str = "",
  progress: Progress | None = None,
  output: TextIO | None = None,
  edit: str = "",
  edit_options: str = "",
  upscale: int = 1,
  upscale_options: str = "",
) -> None:
  """Writes a picture with a row of images, or of a video's frames, for each.

  Args:
    model: as for `samples`, and all that is not here.
    variables: its variables.
    path: of its training.
    decode: makes pixels of samples; see `tasks.image_decoding`.
    sampling: steps, guidance and solver where they are not given here.
    classes: as in OPTIONS; likewise all that follow.
    text: a file.
    num_samples: of each class or text.
    seed: of the noise.
    guidance: a number.
    steps: 0 for that of `sampling`.
    solver: empty for that of `sampling`.
    method: a name.
    method_options: of the method.
    size: sides.
    out: a .png.
    animation: a .gif or .png, or none.
    progress: what is shown of it; a bar on standard error if None.
    output: where it says what it wrote; standard output if None.
    edit: see `diffusion_rework`, and what follows.
    edit_options: of the edit.
    upscale: a factor.
    upscale_options: of it.

  Raises:
    ValueError: for an option that does not fit, before anything is made.
  """
  file = image_options.check_file("out", out, (".png",))
  if animation:
    animated = image_options.check_file(
      "animation", animation, (".gif", ".png")
    )
  video = len(model.sample_shape) == 3
  condition, names = diffusion_options.choose(model, classes, text)
  columns = num_samples or (1 if video else 10)
  if columns < 0:
    raise ValueError(f"num_samples={num_samples} must be 0 or more.")
  options = diffusion_options.of_sampling(
    sampling, guidance=guidance, steps=steps, solver=solver
  )
  then = diffusion_rework.Rework(
    model,
    path,
    condition,
    steps=options["steps"],
    guidance=options["guidance"],
    edit=edit,
    edit_options=edit_options,
    upscale=upscale,
    upscale_options=upscale_options,
  )
  if then and size:
    raise ValueError(
      f"size={size!r}: edits and upscaling are of samples of the trained size."
    )
  shape = len(names), columns
  steps_seen: list[np.ndarray] = []

  def pixels(x):
    whole = mesh_rows.whole(decode(jnp.asarray(x)))
    return whole.reshape(*shape, *whole.shape[1:])

  given = {n: array.repeat(columns, axis=0) for n, array in condition.items()}
  progress = _bar if progress is None else progress
  made = samples(
    model,
    variables,
    path,
    given,
    rows=len(names) * columns,
    seed=seed,
    method=method,
    method_options=diffusion_options.parse_options(method_options),
    size=diffusion_options.parse_size(size, model),
    # All of a step are one picture.
    batch_size=len(names) * columns if animation and not video else _BATCH,
    progress=progress,
    watch=(lambda x: steps_seen.append(pixels(x[: len(names) * columns])))
    if animation and not video
    else None,
    **options,
  )
  if then:
    made = then(
      variables,
      made,
      given,
      columns=columns,
      seed=seed,
      progress=progress,
    )
  if jax.process_index() != 0:
    return
  images = pixels(made)
  if video:
    picture = images.reshape(-1, *images.shape[2:])
    frames = [images[:, :, n] for n in range(images.shape[2])]
    durations = [_FRAME] * len(frames)
  else:
    picture, frames, durations = images, steps_seen, None
  storage.write_whole(
    file, image_grids.encode([image_grids.grid(picture)], ".png")
  )
  if animation:
    shown = [image_grids.grid(frame) for frame in frames]
    storage.write_whole(
      animated, image_grids.encode(shown, animated.suffix, durations)
    )
  what = "texts" if getattr(model, "text_width", 0) else "classes"
  print(
    f"{' and '.join(filter(None, (out, animation)))}: a row each of {what} "
    f"{', '.join(names)}",
    file=sys.stdout if output is None else output,
  )


def _bar(steps, total):
  # None: no bar where nobody watches a terminal.
  disable = None if jax.process_index() == 0 else True
  return tqdm.tqdm(steps, "sampling", total, unit="step", disable=disable)
