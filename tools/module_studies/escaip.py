"""EScAIP beside message passing on clusters of atoms, trained alike."""

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

import experiment
from configs import potentials
from models.potential_base import Prediction
from tools import study

GROUP = "potentials"
TITLE = "EScAIP (2410.24169)"
TEXT = """\
Energies and forces of clusters of 8 to 13 Lennard-Jones atoms with an energy of
triples (Axilrod and Teller's, strength 0.3, about a third of the forces), from
1000 clusters, forces by a head of their own. All rows have the same width and
depth and are trained alike, for 800 updates of 8 clusters. "no angles" leaves
out the angle in the scores of attention alone: bond orders, which every edge is
told, know of angles too. "message passing" has a feed-forward layer of nearly
as many parameters instead of attention, so no edge hears of another; "distances
alone" is the same without bond orders. The first row says the mean energy of an
atom and no force. Errors are mean absolute ones, of the energy per atom and of
a coordinate of a force, in units of the pair's well and its length, on 200
other clusters; in the mean a force's coordinate is 4.3. The paper says that
attention among neighbours is what scales; so small a job cannot show scaling,
only whether the parts help. "turned" is by how much the direct forces of a
turned cluster differ from the turned forces, over their mean: 0 would be
equivariance, which the head does not have by design, and learns from clusters
that training turns.
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
Predict = Callable[[np.ndarray, np.ndarray], Prediction]
Row = tuple[str, dict[str, Any] | None]


def rows(variant: str) -> list[Row]:
  """The names of rows and the fields of their models; of a test, two."""
  if variant == "full":
    return list(_MODELS.items())
  small = {"width": 8, "heads": 2, "depth": 1}
  return [("mean energy", None), ("message passing", {**_PASSING, **small})]


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
    return {"parameters": 0, **_figures(setup, _mean_energy(setup))}
  with tempfile.TemporaryDirectory() as workdir:
    state, line = study.train(config, workdir, show=False)
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    predict = functools.partial(jax.jit(setup.task.predict), state.variables())
    return {
      "parameters": line["parameters"],
      **_figures(setup, predict),
      "turned": _turned(setup, predict),
    }


def make_config(
  options: Mapping[str, Any], seed: int, variant: str
) -> ml_collections.ConfigDict:
  """The config of a run, the same for all models but for the model."""
  config = potentials.get_config("clusters")
  config.data.options.three_body = 0.3
  config.model.width = 32
  config.model.update(options)
  config.optimizer.learning_rate = 2e-3
  config.seed = seed
  config.batch_size = 8
  steps = 800
  if variant == "test":
    config.data.update(train_examples=8, eval_examples=8, atoms=(3, 4))
    config.data.relaxation = (2, 5)
    config.batch_size = config.eval_batch_size = 4
    steps = 1
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  return config


def _batches(setup: Any) -> Iterable[Mapping[str, np.ndarray]]:
  config = setup.config
  return setup.task.room.eval_batches(
    config.data, batch_size=config.eval_batch_size
  )


def _mean_energy(setup: Any) -> Predict:
  """Says of each atom the mean energy, and that nothing moves it."""

  def predict(numbers, positions):
    energy = setup.task.info.energy_mean * (numbers > 0).sum(1)
    return Prediction(energy, np.zeros_like(positions))

  return predict


def _figures(setup: Any, predict: Predict) -> dict[str, float]:
  """Mean errors over clusters, as the task has them."""
  sums = dict.fromkeys(("energy_mae", "force_mae"), 0.0)
  count = 0
  for batch in _batches(setup):
    kept, present = batch["index"] >= 0, batch["numbers"] > 0
    made, atoms = predict(batch["numbers"], batch["positions"]), present.sum(1)
    off = np.abs(made.energy - batch["energy"]) / atoms
    sums["energy_mae"] += off[kept].sum()
    off = np.abs(made.forces - batch["forces"]).sum((1, 2)) / (3 * atoms)
    sums["force_mae"] += off[kept].sum()
    count += kept.sum()
  return {name: float(total / count) for name, total in sums.items()}


def _turned(setup: Any, predict: Predict) -> float:
  """How far forces are from equivariance, over their mean length."""
  turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
  turn = (turn * np.linalg.det(turn)).astype(np.float32)
  batch = next(iter(_batches(setup)))
  numbers, positions = batch["numbers"], batch["positions"]
  still = np.asarray(predict(numbers, positions).forces)
  turned = np.asarray(predict(numbers, positions @ turn).forces)
  off = np.linalg.norm(turned - still @ turn, axis=-1)
  return float(off.sum() / np.linalg.norm(still, axis=-1).sum())
