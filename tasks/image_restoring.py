"""Restores the images that a person gives, for `sample.py`."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import jax
import numpy as np
import tqdm

import storage
from sample_metrics import pictures
from tasks import image_files, image_grids, whole_images

# Options of `restore` for `sample.py`: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "input": (
    "",
    "The image to restore, or a folder of images, as .png, .jpg, .webp, .tif.",
  ),
  "out": (
    "",
    "The .png to write, or for a folder the folder to write to; empty: "
    "restored.png, or the folder restored.",
  ),
  **whole_images.OPTIONS,
}
_NAME = "restored"


def restore(
  restorer: whole_images.ImageRestorer,
  *,
  input: str = "",  # The name of the option.
  out: str = "",
  bar: Callable[..., Any] = tqdm.tqdm,
  output: TextIO | None = None,
) -> None:
  """Restores a file, or all images of a folder, each into a .png.

  Each is written when it is done, with a bar over the calls of the network on
  standard error.

  Args:
    restorer: the network as a function of an image.
    input: as in OPTIONS; likewise `out`.
    out: where to.
    bar: makes the bar, as tqdm does.
    output: where it says what it wrote; standard output if None.

  Raises:
    ValueError: for an input or a place that does not fit, before any image is
      restored; for a file that turns out to be damaged where it is read.
  """
  jobs = image_files.jobs(input, out, _NAME)
  jobs[0].target.parent.mkdir(parents=True, exist_ok=True)
  total = sum(restorer.count(job.shape) for job in jobs)
  # None: no bar where nobody watches a terminal.
  disable = None if jax.process_index() == 0 else True
  with bar(desc="restoring", total=total, unit="call", disable=disable) as seen:
    for job in jobs:
      restored = restorer(image_files.read(job.source), seen.update)
      write(job.target, pictures.to_bytes(restored))
  last = jobs[-1].target
  where = str(last) if len(jobs) == 1 else f"{len(jobs)} in {last.parent}"
  print(
    f"{where}: {restorer.scale} times as large"
    if restorer.scale > 1
    else f"{where}: restored",
    file=sys.stdout if output is None else output,
  )


def write(file: Any, image: np.ndarray) -> None:
  """Writes a uint8 image [height, width, 3] as PNG."""
  storage.write_whole(file, image_grids.encode([image], ".png"))
