"""Losses of potentials written out, a run, and what does not fit."""

import jax
import numpy as np
import optax
import pytest

import models
import tasks
from configs import potentials as configs
from input_pipeline import clusters
from models.potential_base import Prediction


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
    loss += 5 * own / task.info.energy_scale
    loss += 20 * np.linalg.norm(off, axis=1).mean() / task.info.force_scale
    atoms += count
  sums = jax.jit(task.evaluate_step)(variables, batch)
  expected = {"weight": 2, "atoms": atoms, "energy_mae": energy}
  expected |= {"force_mae": forces, "loss": loss}
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
  predict = jax.jit(task.predict)
  made = predict(nothing, batch["numbers"], batch["positions"])
  atoms = (batch["numbers"] > 0).sum(1)
  np.testing.assert_allclose(made.energy, task.info.energy_mean * atoms)
  np.testing.assert_array_equal(made.forces, 0)
  # Forces that are the slope of the energy have its unit.
  numbers, some = batch["numbers"], np.ones_like(batch["energy"])
  said = task.in_units(Prediction(some, batch["forces"]), numbers)
  energy_scale, force_scale = task.info.energy_scale, task.info.force_scale
  np.testing.assert_allclose(said.energy - made.energy, energy_scale, rtol=1e-5)
  np.testing.assert_allclose(said.forces, force_scale * batch["forces"])
  other = _task(_config("clusters_gradient"))
  said = other.in_units(Prediction(some, batch["forces"]), numbers)
  np.testing.assert_allclose(said.forces, energy_scale * batch["forces"])


def test_what_is_minimised_is_what_is_evaluated(trained):
  task, variables, batch = trained
  loss, (collections, sums) = task.loss(variables, batch, jax.random.key(0))
  assert collections == {}
  evaluated = task.evaluate_step(variables, batch)
  assert set(sums) == set(evaluated) - {"atoms"}
  np.testing.assert_allclose(loss, evaluated["loss"], rtol=1e-5)


def test_training_learns(trained):
  task, variables, _ = trained
  batch = next(
    clusters.train_iterator(task.config.data, seed=0, global_batch_size=4)
  )
  assert set(batch) == set(task.batch_spec(4, train=True))
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(variables, state):
    gradient, (_, sums) = jax.grad(task.loss, has_aux=True)(
      variables, batch, jax.random.key(0)
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(variables, updates), state, sums

  state, losses = optimizer.init(variables), []
  for _ in range(40):
    variables, state, sums = step(variables, state)
    losses.append(float(sums["loss"]))
  assert losses[-1] < 0.5 * losses[0]


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
  variables = jax.eval_shape(task.init, jax.random.key(0))
  batch = task.batch_spec(3, train=False)
  sums = jax.eval_shape(task.evaluate_step, variables, batch)
  assert "force_mae" not in sums
