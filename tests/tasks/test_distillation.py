"""Distillation: its losses, what learns, what weights of a run become."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import tasks
from configs import distillation
from models import linfusion, pretrained
from tasks.distillation import TEACHER
from tests import parity_helper
from training import paths


def create(**fields):
  config = distillation.get_config("digits")
  config.model.update(dict(width=16, depth=2, heads=2))
  config.distillation.update(fields)
  info = tasks.find(config.task).room.dataset_info(config.data)
  return tasks.create(config, info)


def teacher_params(task):
  init = functools.partial(task.teacher.init, **task.teacher.example_inputs())
  return parity_helper.randomise(
    jax.eval_shape(init, jax.random.key(0)), seed=0
  )


def loaded(task, params):
  """The variables that a run begins with, as `experiment` makes them."""
  return pretrained.adapt(
    task.received(params),
    task.model,
    optional=lambda path: paths.first_match(task.added, path) is not None,
    init=task.init,
  )


def prepared(task, rows=6):
  spec = task.batch_spec(rows, train=True)
  rng = np.random.default_rng(0)
  batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in spec.items()}
  batch["image"] = jnp.asarray(
    rng.integers(0, 256, spec["image"].shape), jnp.uint8
  )
  batch["label"] = jnp.asarray(rng.integers(0, 10, rows), jnp.int32)
  batch["mask"] = jnp.ones(rows).at[-1].set(0)
  return task.prepare(jax.random.key(0), batch)


@pytest.fixture(scope="module")
def setup():
  task = create()
  params = teacher_params(task)
  return task, params, loaded(task, params), prepared(task)


def test_the_losses_are_those_of_the_recipe(setup):
  task, params, variables, batch = setup
  variables = {**variables, "params": _perturbed(variables["params"])}
  _, (collections, sums) = jax.jit(task.loss)(
    variables, batch, jax.random.key(0)
  )
  assert set(collections) == {TEACHER}

  # The teacher is the whole model that it was, and with what the student has
  # elsewhere, which does not learn.
  shared = traverse_util.flatten_dict(variables["params"])
  original = traverse_util.flatten_dict(params["params"])
  whole = {k: x if "attention" in k else shared[k] for k, x in original.items()}
  whole = {"params": traverse_util.unflatten_dict(whole)}
  noisy = task.path.add_noise(batch["x"], batch["noise"], batch["time"])

  def run(model, variables):
    def apply(variables):
      return model.apply(
        variables,
        noisy,
        batch["time"],
        batch["label"],
        mutable=["intermediates"],
      )

    out, state = jax.jit(apply)(variables)
    return out, [
      state["intermediates"][f"block_{i}"]["mixed"] for i in range(2)
    ]

  ours, mixed = run(task.model, {"params": variables["params"]})
  theirs, wanted = run(task.teacher, whole)
  counts = np.asarray(batch["mask"]) > 0

  def error(a, b):
    error = np.square(np.float64(a) - np.float64(b))
    return error.mean(tuple(range(1, error.ndim)))[counts].sum()

  target = task.path.target(batch["x"], batch["noise"], batch["time"])
  expected = {
    "noise_loss": error(ours, target),
    "output_loss": error(ours, theirs),
    "feature_loss": np.mean(
      [error(a, b) for a, b in zip(mixed, wanted, strict=True)]
    ),
    "weight": 5,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(sums[name], value, rtol=1e-4)
  total = sums["noise_loss"] + 0.5 * (
    sums["output_loss"] + sums["feature_loss"]
  )
  np.testing.assert_allclose(sums["loss"], total, rtol=1e-5)


def _perturbed(params):
  """The student as it may be after some steps, in what learns alone."""
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict(
    {k: x + 0.1 if "attention" in k else x for k, x in flat.items()}
  )


def test_features_come_nearer_at_every_step(setup):
  """And nothing learns but what is in the place of self-attention."""
  task, _, variables, batch = setup
  names = paths.flatten_with_names(variables["params"])
  learns = {name: task.trainable()(name) for name in names}
  optimizer = optax.adam(5e-4)
  params, rest = variables["params"], {TEACHER: variables[TEACHER]}
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    def features_of(params):
      _, (_, sums) = task.loss({"params": params, **rest}, batch, None)
      return sums["feature_loss"]

    features, gradient = jax.value_and_grad(features_of)(params)
    updates, state = optimizer.update(gradient, state)
    flat = traverse_util.flatten_dict(updates, sep="/")
    kept = {n: x if learns[n] else jnp.zeros_like(x) for n, x in flat.items()}
    updates = traverse_util.unflatten_dict(kept, sep="/")
    return optax.apply_updates(params, updates), state, features

  features = []
  for _ in range(15):
    params, state, value = step(params, state)
    features.append(float(value))
  assert (np.diff(features) < 0).all()
  assert features[-1] < 0.6 * features[0]
  taught = {name for name in names if learns[name]}
  assert {name.split("/")[1] for name in taught} == {"attention"}
  assert {name.split("/")[2] for name in taught} == {
    *linfusion.PROJECTIONS,
    *linfusion.UPDATES,
  }


@pytest.mark.parametrize("copied", [True, False])
def test_weights_of_a_run_become_teacher_and_student(copied):
  task = create(copy_projections=copied)
  run = teacher_params(task)
  variables = loaded(task, run)
  flat = functools.partial(traverse_util.flatten_dict, sep="/")
  params, original = flat(variables["params"]), flat(run["params"])
  teacher = flat(variables[TEACHER]["original"])
  assert set(teacher) == {n for n in original if "/attention/" in n}
  for name, x in original.items():
    np.testing.assert_array_equal(teacher.get(name, params[name]), x)
    same = name not in teacher or copied
    assert np.array_equal(params[name], x) == same
  for name in linfusion.UPDATES:
    assert f"block_1/attention/{name}/expand/kernel" in params
  # Of a run of this task all is there already.
  again = loaded(task, variables)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_errors_name_what_would_fit():
  config = distillation.get_config("test")
  info = tasks.find(config.task).room.dataset_info(config.data)
  for change, message in (
    (dict(model=dict(mixer="attention")), "model.mixer='attention' is what"),
    (dict(init=dict(weights="")), r"init.weights is empty"),
  ):
    wrong = config.copy_and_resolve_references()
    wrong.model.mixer_options = {}
    wrong.update(change)
    with pytest.raises(ValueError, match=message):
      tasks.create(wrong, info)
