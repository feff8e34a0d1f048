"""The training steps of `benchmarks.steps_static`."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

import experiment
import models
from tools import absent_data, topologies, work


class Case(NamedTuple):
  """A published config, and what of a pod it is compiled for.

  Attributes:
    config: file of `configs` and variant.
    batch: examples a chip.
    topology: what the step is compiled for: one chip, or as many as hold it.
    causal: whether each token sees those before it only.
    length: tokens of a row, 0 for the config's.
  """

  config: str
  batch: int
  topology: str = "v5e:1x1"
  causal: bool = False
  length: int = 0


# As many examples a chip as on 256 of them.
CASES = (
  Case("maxvit:base_224", 4096 // 256),
  Case("halonet:h1", 4096 // 256),
  Case("lina:imagenet_256", 2048 // 256),
  # Parameters and moments of a billion are more than a chip has.
  Case("language:1b", 1, "v5e:2x4", causal=True),
  # The reference needs 198 GB for rows of 8,192.
  Case("language:1b", 1, "v5e:2x4", causal=True, length=2048),
)


def config(case: Case, implementation: str) -> ml_collections.ConfigDict:
  """Returns the config of a case, its kernels of that implementation."""
  family, variant = case.config.split(":")
  found = importlib.import_module(f"configs.{family}").get_config(variant)
  rows = case.batch * len(devices(case))
  found.batch_size = found.eval_batch_size = rows
  if case.length:
    found.data.length = case.length
  fields = models.fields(found.model.name)
  with found.unlocked():
    for name in (
      "implementation",
      "attention_implementation",
      "feed_forward_implementation",
    ):
      if name in fields:
        found.model[name] = implementation
  return found


def devices(case: Case) -> Sequence[Any]:
  """Returns the chips of a case."""
  return topologies.devices(case.topology)


def create(case: Case, implementation: str) -> experiment.Experiment:
  """Returns the experiment of a case, whose data are not needed."""
  chosen = config(case, implementation)
  return experiment.create(chosen, devices(case), absent_data.info(chosen))


def useful_flops(case: Case) -> float:
  """Returns the operations that the result of a step needs, on each chip.

  Three times those of the forward pass, with half of the scores if causal.
  """
  made = create(case, "xla")
  flops = _forward_flops(made)
  if case.causal:
    # Scores grow with the square of the length, all else with the length.
    longer = case._replace(length=2 * made.config.data.length)
    flops -= (_forward_flops(create(longer, "xla")) - 2 * flops) / 4
  return 3 * flops / made.mesh.size


def _forward_flops(made: experiment.Experiment) -> int:
  """Operations of the forward pass of a batch."""
  task = made.task
  batch = task.batch_spec(made.config.batch_size, train=True)
  key = jax.eval_shape(functools.partial(jax.random.key, 0))
  # What draws random numbers, in loops of unknown length, is no work of the
  # model.
  prepared = jax.eval_shape(task.prepare, key, batch)
  variables = jax.eval_shape(made.init_variables)
  return 2 * work.count_work(task.loss, variables, prepared, key).multiply_adds
