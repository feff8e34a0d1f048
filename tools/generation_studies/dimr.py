"""DiMR beside the diffusion transformer, trained alike on digits."""

import functools
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

import experiment
from configs import dimr
from tasks import diffusion_evaluation, diffusion_sampling, image_decoding
from tools import study, work

TITLE = "DiMR (2406.09416)"
TEXT = """\
Networks with as many multiply-adds, trained alike on the digits of 8 x 8
pixels: the transformer with adaptive norms on 4 x 4 tokens of 2 x 2 pixels;
DiMR, whose first stage has these tokens and whose second has all pixels; and
two controls, DiMR without the loss of its first stage, and its first stage
alone, on 64 tokens of a pixel. The paper says that several resolutions make
better images than one, and that the loss of all stages helps. "loss" is the
mean squared error of the noise at all pixels, in the evaluation split.
"""
SUBJECT = None
COLUMNS = (
  ("parameters", ",.0f"),
  ("multiply_adds", ",.0f"),
  ("loss", ".4f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
)
Row = tuple[str, dict[str, Any]]
_TWO = {"name": "dimr_xl_2r", "widths": (48, 16), "depths": (5, 5), "heads": 4}
_MODELS = {
  "transformer": {
    "name": "dit_s_2",
    "patch_size": (2, 2),
    "width": 64,
    "depth": 4,
    "heads": 4,
    "learned_variance": False,
    "guided_channels": None,
  },
  "DiMR": _TWO,
  "DiMR, loss of the last stage": {**_TWO, "loss_weights": (0.0, 1.0)},
  "DiMR, one resolution": {
    "name": "dimr_xl_2r",
    "widths": (26,),
    "depths": (5,),
    "heads": 2,
    "loss_weights": (1.0,),
  },
}
# Steps of training, samples and steps of sampling.
_SIZES = {"full": (500, 200, 20), "test": (2, 10, 2)}


def rows(variant: str) -> list[Row]:
  """The names of rows and the fields of their models; of a test, few layers."""
  if variant == "full":
    return list(_MODELS.items())
  return [
    ("transformer", {**_MODELS["transformer"], "depth": 1}),
    ("DiMR", {**_TWO, "depths": (1, 1)}),
  ]


def measure(
  subject: Any, name: str, options: Mapping[str, Any], seed: int, variant: str
) -> dict[str, float]:
  """Trains a model, makes samples of it and measures them.

  Args:
    subject: None, as the study trains its own.
    name: of the row.
    options: fields of the model.
    seed: of the training and of the samples.
    variant: "full" or "test".

  Returns:
    What COLUMNS names.
  """
  del subject, name
  _, samples, steps = _SIZES[variant]
  config = make_config(options, seed, variant)
  with tempfile.TemporaryDirectory() as workdir:
    state, _ = study.train(config, workdir, show=False)
  if len(options.get("widths", ())) > 1:
    # Of all rows the same error is measured, whatever was minimised.
    config.model.loss_weights = (0.0, 1.0)
  setup = experiment.create_evaluation(config)
  task, variables = setup.task, state.variables()
  condition = diffusion_evaluation.conditions(task, samples)
  with jax.set_mesh(setup.mesh):
    loss = task.evaluate_split(setup.mesh).run(variables)["loss"]
    made = diffusion_sampling.samples(
      task.model,
      variables,
      task.path,
      condition,
      rows=samples,
      steps=steps,
      guidance=1.5,
      solver="dpm_solver",
      seed=seed,
    )
    pixels = image_decoding.create(task.model, variables, task.info)(made)
    quality = _quality()(np.asarray(pixels), condition["label"])
  return {
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    "multiply_adds": multiply_adds(task.model),
    "loss": float(loss),
    "accuracy": float(quality["class_accuracy"]),
    "frechet": float(quality["frechet_distance"]),
  }


@functools.cache
def _quality() -> diffusion_evaluation.Quality:
  """One for all rows, since it trains a classifier."""
  return diffusion_evaluation.Quality(dimr.get_config("digits").data)


def make_config(
  options: Mapping[str, Any], seed: int, variant: str
) -> ml_collections.ConfigDict:
  """The config of a run, the same for all models but for the model."""
  steps = _SIZES[variant][0]
  config = dimr.get_config("digits")
  config.model = ml_collections.ConfigDict(dict(options))
  # As the transformer's recipes have it, for all.
  config.optimizer.decay_exclude = (".*/(slope|offset|bias)",)
  config.seed = seed
  config.batch_size = 64
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  config.evaluation.num_samples = 0
  config.ema.decay = 0.99
  return config


def multiply_adds(model: Any) -> int:
  """Of one image, once through the model."""
  model = model.clone(implementation="xla")
  inputs = model.example_inputs()
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
  counted = work.count_work(
    lambda variables, inputs: model.apply(variables, **inputs),
    variables,
    inputs,
  )
  return counted.multiply_adds
