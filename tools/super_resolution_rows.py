"""What the studies of networks that make photographs larger share."""

import tempfile

import jax
import ml_collections
import numpy as np
from etils import epath
from PIL import Image

import experiment
from input_pipeline import restoration
from tasks import restoration_evaluation
from tools import study

COLUMNS = (
  ("parameters", ",.0f"),
  ("psnr_y", ".2f"),
  ("ssim_y", ".4f"),
  ("psnr_rgb", ".2f"),
  ("gain", ".2f"),
)
_FIGURES = ("psnr_y", "ssim_y", "psnr_rgb")
# The row that trains nothing.
BICUBIC = "bicubic"


def measured(
  config: ml_collections.ConfigDict, folder: epath.Path, row: str, variant: str
) -> dict[str, float]:
  """What a row of a study gives.

  Args:
    config: of the run; of a test's small data, changed in place.
    folder: of what rows share: the small images of a test.
    row: its name; that of BICUBIC has no network.
    variant: "full" or "test".

  Returns:
    What COLUMNS names.
  """
  if variant == "test":
    few(config, folder)
  return bicubic(config) if row == BICUBIC else trained(config)


def few(config: ml_collections.ConfigDict, folder: epath.Path) -> None:
  """Lets a run of a test have small parts of two photographs for all of them.

  Args:
    config: of the run, changed in place.
    folder: of what rows share.
  """
  own = folder / "parts_of_photographs"
  if not own.is_dir():
    whole = [pair.clean for pair in restoration.eval_pairs(config.data)]
    own.mkdir(parents=True)
    for i, image in enumerate(whole[:2]):
      part = Image.fromarray(image[100:132, 100:132])
      with (own / f"{i}.png").open("wb") as file:
        part.save(file, "png")
  config.data.name = "folder"
  config.data.folder = config.data.train_folder = str(own)


def trained(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Trains a network, and measures it on the images that were held out.

  Args:
    config: of the run; whole images take long, so they are measured once.

  Returns:
    What COLUMNS names; gain is the PSNR on Y over bicubic interpolation's.
  """
  config.evaluate_every = config.checkpoint.every = config.train_for
  with tempfile.TemporaryDirectory() as workdir:
    state, line = study.train(config, workdir, show=False)
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    result = setup.task.whole_images(setup.mesh).run(state.variables())
  found = {name: result[name] for name in _FIGURES}
  gain = result["psnr_y"] - result["baseline_psnr_y"]
  return {"parameters": line["parameters"], "gain": gain, **found}


def bicubic(config: ml_collections.ConfigDict) -> dict[str, float]:
  """What bicubic interpolation makes of the same images."""
  found = []
  for pair in restoration.eval_pairs(config.data):
    scale = config.data.scale
    image = restoration.imresize(pair.degraded, scale)
    found.append(restoration_evaluation.measure(pair, image, scale))
  means = {
    name: float(np.mean([image[name] for image in found])) for name in _FIGURES
  }
  return {"parameters": 0, "gain": 0.0, **means}
