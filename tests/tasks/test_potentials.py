"""Losses of potentials written out, a run, and what does not fit."""

import jax
import numpy as np
import pytest

import models
import tasks
from configs import potentials as configs
from input_pipeline import clusters
from models.potential_base import Prediction
from train import train_and_evaluate


def _config(variant="clusters", **model):
  config = configs.get_config(variant)
  config.data.update(train_examples=12, eval_examples=5, num_threads=0)
  config.data.update(atoms=(3, 5), relaxation=(5, 9))
  config.model.update(width=8, depth=1, heads=2, basis_size=8, degrees=3)
  config.model.update(model)
  config.batch_size, config.eval_batch_size = 4, 4
  return config


def _task(config):
  return tasks.create(config, clusters.dataset_info(config.data))


@pytest.fixture(scope="module")
def trained():
  """A task, variables of it, and a batch of evaluation with padding."""
  task = _task(_config())
  batch = list(clusters.eval_batches(task.config.data, batch_size=3))[1]
  assert batch.pop("index").tolist() == [3, 4, -1]
  return task, jax.jit(task.init)(jax.random.key(0)), batch


def test_sums_are_those_of_one_structure_after_another(trained):
  task, variables, batch = trained
  spec = task.batch_spec(3, train=False)
  assert set(spec) == set(batch)
  for name, x in spec.items():
    assert (x.shape, x.dtype) == (batch[name].shape, batch[name].dtype)
  predict = jax.jit(task.predict)
  made = predict(variables, batch["numbers"], batch["positions"])
  energy, forces, loss, atoms = 0.0, 0.0, 0.0, 0
  for row in range(2):
    count = int((batch["numbers"][row] > 0).sum())
    off = made.forces[row, :count] - batch["forces"][row, :count]
    own = abs(made.energy[row] - batch["energy"][row]) / count
    energy += own
    forces += np.abs(off).mean()
    loss += 5 * own + 20 * np.linalg.norm(off, axis=1).mean()
    atoms += count
  sums = jax.jit(task.evaluate_step)(variables, batch)
  expected = {"weight": 2, "atoms": atoms, "energy_mae": energy}
  expected |= {"force_mae": forces, "loss": loss / task.info.scale}
  assert set(sums) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)
  result = task.summarize(
    {name: np.asarray(x, np.float64) for name, x in sums.items()}
  )
  assert result["structures"] == 2
  np.testing.assert_allclose(result["force_mae"], forces / 2, rtol=1e-5)
  assert task.describe(result).endswith("on 2 structures")


def test_units_are_those_of_the_data(trained):
  """A model that says nothing has the mean energy, and no force."""
  task, variables, batch = trained
  nothing = jax.tree.map(np.zeros_like, variables)
  made = task.predict(nothing, batch["numbers"], batch["positions"])
  atoms = (batch["numbers"] > 0).sum(1)
  np.testing.assert_allclose(made.energy, task.info.energy_mean * atoms)
  np.testing.assert_array_equal(made.forces, 0)
  # One factor for both: forces stay the slope of the energy.
  numbers, some = batch["numbers"], np.ones_like(batch["energy"])
  said = task.in_units(Prediction(some, batch["forces"]), numbers)
  np.testing.assert_allclose(
    said.energy - made.energy, task.info.scale, rtol=1e-5
  )
  np.testing.assert_allclose(said.forces, task.info.scale * batch["forces"])


def test_what_is_minimised_is_what_is_evaluated(trained):
  task, variables, batch = trained
  loss, (collections, sums) = task.loss(variables, batch, jax.random.key(0))
  assert collections == {}
  evaluated = task.evaluate_step(variables, batch)
  assert set(sums) == set(evaluated) - {"atoms"}
  np.testing.assert_allclose(loss, evaluated["loss"], rtol=1e-5)


@pytest.mark.slow  # Trains: the loop compiles steps for several devices.
def test_a_run_learns(tmp_path):
  config = _config()
  config.train_for = config.evaluate_every = "30 steps"
  config.checkpoint.every = "30 steps"
  config.optimizer.learning_rate = 1e-2
  train_and_evaluate(config, str(tmp_path), show=False)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  print(lines)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model.forces": "none"}, "force_weight=20.0, but model.forces='none'"),
    ({"model.elements": 18}, "model.elements=18, but the data have an atom"),
    ({"energy_weight": 0.0, "force_weight": 0.0}, "leave nothing to learn"),
    ({"model.name": "transformer"}, "is of kind 'language'"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  config = _config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    _task(config)


def test_energies_alone():
  config = _config(forces="none")
  config.force_weight = 0.0
  task = _task(config)
  assert "force_mae" not in task.metric_names()
  assert models.kind(config.model.name) == "potential"
  variables = task.init(jax.random.key(0))
  batch = next(iter(clusters.eval_batches(config.data, batch_size=3)))
  sums = jax.eval_shape(task.evaluate_step, variables, batch)
  assert "force_mae" not in sums
