"""MTAIR's parts, one more at a time, on photographs with noise."""

import tempfile
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from configs import mtair
from input_pipeline import restoration
from tasks import restoration_evaluation
from tools import study
from training import metrics

TITLE = "MTAIR (2412.15845)"
GROUP = "restoration"
TEXT = """\
Noise of 25 grey levels on the photographs of scikit-learn and scikit-image:
small U-Nets of three blocks, trained alike on patches of 32 pixels and measured
on three photographs that were held out, in tiles of 128 pixels. The first row
is the noisy image. Restormer's blocks attend among channels; "wider" is a
control that has about as many parameters as scans and prompts bring; then the
scan of places is added to the blocks of the first level, and prompts to what
goes to the decoder. Blocks with scans and prompt blocks are our reconstruction,
as the authors published neither. The paper says that both parts help one
network of five degradations; here is one, so that prompts have no choice.
"""
COLUMNS = (
  ("parameters", ",.0f"),
  ("psnr_rgb", ".2f"),
  ("ssim_rgb", ".4f"),
  ("gain", ".2f"),
)
Row = tuple[str, dict[str, Any]]
_IDENTITY = "noisy image"
_SCANS = mtair.SMALL | mtair.SCANS
_MODELS: dict[str, dict[str, Any]] = {
  _IDENTITY: {},
  "Restormer": mtair.SMALL,
  "Restormer, wider": mtair.SMALL | {"width": 12},
  "with scans": _SCANS,
  "with scans and prompts": _SCANS | mtair.PROMPTS,
}
# The least that goes through all of the study's code: no block at all.
_NO_BLOCK = {"width": 4, "depths": (0,), "heads": (1,), "refinement_depth": 0}
_STEPS = 300


def rows(variant: str) -> list[Row]:
  """The names of rows and the fields of their models; of a test, two."""
  if variant == "full":
    return list(_MODELS.items())
  return [(_IDENTITY, {}), ("Restormer", _NO_BLOCK)]


def measure(
  folder: epath.Path,
  row: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains a network, if the row has one, and measures what it restores.

  Args:
    folder: not used, as rows share nothing.
    row: its name.
    options: fields of the model.
    seed: of the training; the noise of what is measured is always the same.
    variant: "full" or "test".

  Returns:
    What COLUMNS names; gain is the PSNR's over that of the noisy image.
  """
  del folder
  config = make_config(options, seed, variant)
  if row == _IDENTITY:
    return _of_noise(config)
  with tempfile.TemporaryDirectory() as workdir:
    _, line = study.train(config, workdir, show=False)
    *_, result = filter(metrics.is_evaluation, metrics.read_metrics(workdir))
  result = {name.removeprefix("eval/"): x for name, x in result.items()}
  gain = result["psnr_rgb"] - result["baseline_psnr_rgb"]
  return {"parameters": line["parameters"], "gain": gain} | {
    name: result[name] for name in ("psnr_rgb", "ssim_rgb")
  }


def _of_noise(config: ml_collections.ConfigDict) -> dict[str, float]:
  """What no network at all does."""
  found = [
    restoration_evaluation.measure(pair, pair.degraded, 1)
    for pair in restoration.eval_pairs(config.data)
  ]
  means = {
    name: float(np.mean([image[name] for image in found]))
    for name in ("psnr_rgb", "ssim_rgb")
  }
  return {"parameters": 0, "gain": 0.0, **means}


def make_config(
  options: Mapping[str, Any], seed: int, variant: str
) -> ml_collections.ConfigDict:
  """The config of a run, the same for all rows but for the model."""
  config = mtair.get_config("photographs" if variant == "full" else "test")
  if variant == "full":
    config.train_for = f"{_STEPS} steps"
  # The name, and no field that the config has set.
  config.model = ml_collections.ConfigDict({"name": "restormer", **options})
  config.seed = seed
  # Whole images take as long as much of the training: they are measured once.
  config.evaluate_every = config.checkpoint.every = config.train_for
  return config
