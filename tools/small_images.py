"""What studies of light modules share: networks on digits and Fashion-MNIST."""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

import models
from configs import digits, fashion_mnist
from tools import study, work
from training import metrics

COLUMNS = (
  ("parameters", ",.0f"),
  ("multiply_adds", ",.0f"),
  ("digits", ".2%"),
  ("fashion_mnist", ".2%"),
)
# Of the test images, by the moving average of the weights.
_ACCURACY = "eval/accuracy"
_RECIPES = {"digits": digits.recipe, "fashion_mnist": fashion_mnist.recipe}
# Of each data set the updates; Fashion-MNIST need not be there for a test.
_STEPS = {
  "full": {"digits": 200, "fashion_mnist": 250},
  "test": {"digits": 1},
}


def figures(
  model: Mapping[str, Any], seed: int, variant: str
) -> dict[str, float]:
  """Trains a network on each data set, and measures it on the test images.

  Args:
    model: its name and fields.
    seed: of the runs.
    variant: "full" or "test".

  Returns:
    What COLUMNS names: sizes, of an image of 32 x 32 pixels, and accuracies by
    data set.

  Raises:
    StoppedError: if a run was stopped before its end.
  """
  found = {}
  for data, steps in _STEPS[variant].items():
    config = _config(data, model, seed, steps)
    with tempfile.TemporaryDirectory() as workdir:
      _, line = study.train(config, workdir, show=False)
      rows = [r for r in metrics.read_metrics(workdir) if _ACCURACY in r]
    if not rows:
      raise study.StoppedError(
        f"{workdir} was stopped before it was evaluated."
      )
    found[data] = rows[-1][_ACCURACY]
    found["parameters"] = line["parameters"]
  return {**found, "multiply_adds": _multiply_adds(model)}


def _config(
  data: str, model: Mapping[str, Any], seed: int, steps: int
) -> ml_collections.ConfigDict:
  config = _RECIPES[data]()
  config.model = ml_collections.ConfigDict(dict(model))
  config.seed = seed
  config.batch_size = 64
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  return config


def _multiply_adds(model: Mapping[str, Any]) -> int:
  fields = dict(model)
  net = models.create(fields.pop("name"), **{"num_classes": 10, **fields})
  image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  return work.count_work(net.apply, variables, image).multiply_adds
