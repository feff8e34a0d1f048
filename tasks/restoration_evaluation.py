"""How good restored images are: whole images, one after the other."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import storage
from input_pipeline import restoration
from sample_metrics import pictures
from tasks import whole_images
from tasks.base import Progress, Variables
from training import evaluation, hosts

MEASURES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")
# Before the names of those of the image that was not restored.
BASELINE = "baseline_"
# Columns of the table that are no figures, of which there are means.
_TEXTS = ("name", "degradation", "height", "width")


class WholeImages:
  """Restores all pairs of `config.data` and measures; an `Evaluation`.

  Images have any size, and weigh the same. All processes restore the same
  image at a time, split by tiles if it has some, and know the same results.
  """

  name = "eval"
  every = None

  def __init__(
    self,
    model: Any,
    data: Any,
    mesh: jax.sharding.Mesh,
    *,
    error: Callable[[np.ndarray], np.ndarray],
    shape: Sequence[int],
    count: int,
    rounded: bool = True,
    **options: Any,
  ):
    """Takes what it needs; opens the pairs and compiles nothing.

    Args:
      model: of kind "restoration".
      data: `config.data`.
      mesh: the device mesh.
      error: the loss of differences, value by value, of NumPy's arrays.
      shape: rows, height and width of the batch that `lower` is of.
      count: how many pairs there are.
      rounded: whether restored images have 8 bits before they are measured.
      **options: of `whole_images.ImageRestorer`.

    Raises:
      ValueError: for tiles that do not fit the model.
    """
    self._model, self._data, self._mesh = model, data, mesh
    self._error, self._shape = error, tuple(shape)
    self._step = whole_images.jitted(model)
    self._count, self._rounded, self._options = count, rounded, options
    self.restorer({})  # Refuses what does not fit.

  def restorer(self, variables: Variables) -> whole_images.ImageRestorer:
    """The network with these variables, as a function of an image."""
    return whole_images.ImageRestorer(
      self._model, variables, step=self._step, **self._options
    )

  def lower(self, variables: Variables) -> jax.stages.Lowered:
    """Lowers the network, for a batch of images of `shape`."""
    spec = {"rows": jax.ShapeDtypeStruct((*self._shape, 3), jnp.uint8)}
    rows = evaluation.placed(spec, self._mesh)["rows"]
    return self._step.lower(variables, rows)

  def use(self, compiled: jax.stages.Compiled) -> None:
    """Forgets it: whole images have shapes of their own."""
    del compiled

  def run(
    self,
    variables: Variables,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda pairs, total: pairs,
  ) -> dict[str, Any]:
    """Measures; see `Evaluation`, and `progress` of `Task.evaluate`."""
    return summarize(
      self.rows(variables, should_stop=should_stop, progress=progress)
    )

  def rows(
    self,
    variables: Variables,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda pairs, total: pairs,
  ) -> list[dict[str, Any]]:
    """What `measure` says of each image, with its name and size.

    Raises:
      ValueError: for a pair whose sizes do not fit the model's scale.
    """
    restore = self.restorer(variables)
    pairs = restoration.eval_pairs(self._data)
    found = []
    for pair in progress(pairs, self._count):
      if should_stop():
        raise evaluation.EvaluationInterrupted
      hosts.went_on()
      check_pair(pair, restore.scale)
      image = restore(pair.degraded)
      found.append(
        {
          "name": pair.name,
          "degradation": pair.degradation,
          "height": pair.clean.shape[0],
          "width": pair.clean.shape[1],
          "loss": self._loss(image, pair.clean),
          **measure(pair, self._seen(image), restore.scale),
        }
      )
    return found

  def _seen(self, image):
    return pictures.to_bytes(image) if self._rounded else image

  def _loss(self, image, clean):
    difference = image - clean.astype(np.float32) / 255
    return float(self._error(difference).mean(dtype=np.float64))


def measure(
  pair: restoration.Pair, restored: np.ndarray, scale: int
) -> dict[str, float]:
  """PSNR and SSIM of a restored image, and of the one that it was made of.

  Of enlarged images a border of `scale` pixels does not count, as in the papers
  of super-resolution; of others all counts. The baseline is the degraded image,
  enlarged by the bicubic interpolation of `restoration.imresize`.

  Args:
    pair: with both images.
    restored: of the shape of the clean image, as `pictures.psnr` takes it.
    scale: of the network.

  Raises:
    ValueError: if an image is smaller than a window of SSIM.
  """
  enlarged = scale > 1
  plain = (
    restoration.imresize(pair.degraded, scale) if enlarged else pair.degraded
  )
  shave = scale if enlarged else 0
  try:
    own = pictures.figures(restored, pair.clean, shave=shave)
    unrestored = pictures.figures(plain, pair.clean, shave=shave)
  except ValueError as error:
    raise ValueError(f"{pair.name}: {error}") from error
  return own | {BASELINE + name: x for name, x in unrestored.items()}


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Means over images, and how many there were.

  With several degradations also the means of each, as "psnr_y_rain".

  Raises:
    ValueError: if there were none.
  """
  if not rows:
    raise ValueError("There is no image to evaluate.")
  result = _means(rows, [name for name in rows[0] if name not in _TEXTS])
  kinds = list(dict.fromkeys(row["degradation"] for row in rows))
  if len(kinds) > 1:
    for kind in kinds:
      own = [row for row in rows if row["degradation"] == kind]
      found = _means(own, MEASURES)
      result |= {f"{name}_{kind}": value for name, value in found.items()}
  return {**result, "images": len(rows)}


def _means(rows, names):
  return {name: float(np.mean([row[name] for row in rows])) for name in names}


def check_pair(pair: restoration.Pair, scale: int) -> None:
  """Raises ValueError unless the clean image is `scale` times the degraded."""
  height, width = pair.degraded.shape[:2]
  if pair.clean.shape != (scale * height, scale * width, 3):
    raise ValueError(
      f"{pair.name}: the clean image is {list(pair.clean.shape)}, and the "
      f"degraded one is {list(pair.degraded.shape)}; with a model of scale "
      f"{scale} it must be {[scale * height, scale * width, 3]}."
    )


def write_table(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes a CSV file with a row for each image.

  Args:
    path: of the file.
    rows: as `WholeImages.rows` returns them.
  """
  names = [*_TEXTS, "loss", *MEASURES, *(BASELINE + n for n in MEASURES)]
  with storage.path(path).open("w") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
      writer.writerow([_cell(row[name]) for name in names])


def _cell(value):
  return f"{value:.4f}" if isinstance(value, float) else value
