"""EScAIP beside message passing on clusters of atoms, trained alike."""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

import experiment
from configs import potentials
from tools import study

GROUP = "potentials"
TITLE = "EScAIP (2410.24169)"
TEXT = """\
Energies and forces of clusters of 8 to 13 Lennard-Jones atoms with an energy of
triples (Axilrod and Teller's, strength 0.3, about a third of the forces), from
1000 clusters, forces by a head of their own. All rows have the same width and
depth and are trained alike, for 300 updates of 16 clusters. "no angles" leaves
out the angle in the scores of attention alone: bond orders, which every edge is
told, know of angles too. "message passing" has a feed-forward layer of nearly
as many parameters instead of attention, so no edge hears of another; "distances
alone" is the same without bond orders. The first row says the mean energy of an
atom and no force. Errors are mean absolute ones, of the energy per atom and of a
coordinate of a force, in units of the pair's well and its length, on 200 other
clusters; a force's coordinate is 4.3 in the mean. The paper says that attention
among neighbours is what scales; so small a job cannot show scaling, only whether
the parts help. "turned" is by how much the direct forces of a turned cluster
differ from the turned forces, over their mean: 0 would be equivariance, which
the head does not have by design and learns from clusters that training turns.
"""
COLUMNS = (
  ("parameters", ",.0f"),
  ("energy_mae", ".3f"),
  ("force_mae", ".3f"),
  ("turned", ".1%"),
)
_PASSING = {"mixing": "none", "angles": "none"}
_MODELS: dict[str, dict[str, Any] | None] = {
  "mean energy": None,
  "EScAIP": {},
  "EScAIP, no angles": {"angles": "none"},
  "message passing": _PASSING,
  "message passing, distances alone": {**_PASSING, "degrees": 1},
}
Row = tuple[str, dict[str, Any] | None]


def rows(variant: str) -> list[Row]:
  """The names of rows and the fields of their models; of a test, two."""
  if variant == "full":
    return list(_MODELS.items())
  small = {"width": 8, "heads": 2, "depth": 1}
  return [("mean energy", None), ("EScAIP", small)]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any] | None,
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains a model and measures its errors.

  Args:
    folder: unused, as rows share nothing.
    name: of the row.
    options: fields of the model; None for the mean of the data.
    seed: of the training.
    variant: "full" or "test".

  Returns:
    What COLUMNS names.
  """
  del folder, name
  config = make_config(options or {}, seed, variant)
  if options is None:
    setup = experiment.create_evaluation(config)
    state = jax.jit(setup.task.init)(jax.random.key(0))
    return {
      "parameters": 0,
      **_errors(setup, jax.tree.map(np.zeros_like, state)),
    }
  with tempfile.TemporaryDirectory() as workdir:
    state, line = study.train(config, workdir, show=False)
  setup = experiment.create_evaluation(config)
  variables = state.variables()
  return {
    "parameters": line["parameters"],
    **_errors(setup, variables),
    "turned": _turned(setup, variables),
  }


def make_config(
  options: Mapping[str, Any], seed: int, variant: str
) -> ml_collections.ConfigDict:
  """The config of a run, the same for all models but for the model."""
  config = potentials.get_config("clusters")
  config.data.options.three_body = 0.3
  config.model.width = 32
  config.model.update(options)
  config.energy_weight = 20.0
  config.optimizer.learning_rate = 4e-3
  config.seed = seed
  steps = 300
  if variant == "test":
    config.data.update(train_examples=8, eval_examples=8, atoms=(3, 4))
    config.data.relaxation = (2, 5)
    config.batch_size = config.eval_batch_size = 4
    steps = 1
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  return config


def _errors(setup: Any, variables: Any) -> dict[str, float]:
  with jax.set_mesh(setup.mesh):
    result = setup.task.evaluate_split(setup.mesh).run(variables)
  return {name: float(result[name]) for name in ("energy_mae", "force_mae")}


def _turned(setup: Any, variables: Any) -> float:
  """How far forces are from equivariance, over their mean length."""
  task = setup.task
  with jax.set_mesh(setup.mesh):
    batch = next(iter(task.evaluate_split(setup.mesh).batches))
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    turn = (turn * np.linalg.det(turn)).astype(np.float32)
    predict = jax.jit(task.predict)
    numbers, positions = batch["numbers"], batch["positions"]
    still = np.asarray(predict(variables, numbers, positions).forces)
    turned = np.asarray(predict(variables, numbers, positions @ turn).forces)
  off = np.linalg.norm(turned - still @ turn, axis=-1)
  return float(off.sum() / np.linalg.norm(still, axis=-1).sum())
