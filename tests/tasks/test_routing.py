"""Routing against its formulas, and a run from a model without routers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiment
import tasks
from configs import routing as configs
from experiment import weights
from input_pipeline import sequences
from models import router, taps
from tests.models import language
from train import train_and_evaluate


def small(variant="routers"):
  config = configs.get_config(variant)
  config.model.update(width=16, depth=2, heads=2, mlp_width=16, window=3)
  config.model.mixer_options = {
    "routed": {"sink_tokens": 1, "pooled_tokens": 3}
  }
  config.data.options = dict(length=24, queries=6, pairs=3, keys=4, values=4)
  config.data.update(eval_examples=10, train_examples=40, num_threads=0)
  config.batch_size, config.eval_batch_size = 8, 4
  config.train_for = config.evaluate_every = config.checkpoint.every = "2 steps"
  config.optimizer.warmup = "0 steps"
  return config


def create(config):
  return tasks.create(config, sequences.dataset_info(config.data))


def batch_of(task, rows=8):
  batch = next(
    sequences.train_iterator(task.config.data, seed=0, global_batch_size=rows)
  )
  spec = task.batch_spec(rows, train=True)
  return {name: jnp.asarray(batch[name]) for name in spec}


def variables_of(task, seed=0):
  """Random ones, of which routers choose both."""
  return {
    **task.init(jax.random.key(0)),
    "params": {
      **language.variables(task.model, seed)["params"],
      "multipliers": {
        "linear": jnp.asarray([0.3, -0.2]),
        "quadratic": jnp.asarray([0.45, 0.1]),
      },
    },
  }


def test_the_temperature_falls_by_a_half_cosine():
  config = small()
  config.train_for = "100 steps"
  task = create(config)
  steps = np.array([0, 30, 60, 80, 100], np.float32)
  np.testing.assert_allclose(
    task.temperature(steps), [1.5, 1.25, 1.0, 1.0, 1.0], atol=1e-6
  )


def test_multipliers_begin_between_nothing_and_a_half():
  task = create(small())
  keys = jax.random.split(jax.random.key(1), 50)
  draw = jax.vmap(lambda key: task.init(key)["params"]["multipliers"])
  drawn = jax.jit(draw)(keys)
  for name in ("linear", "quadratic"):
    assert drawn[name].shape == (50, 2)
    assert 0 <= drawn[name].min() < 0.05
    assert 0.45 < drawn[name].max() < 0.5
  assert not np.allclose(drawn["linear"], drawn["quadratic"])


def test_the_penalty_is_a_mean_of_groups_that_multipliers_make_large(
  monkeypatch,
):
  """Values and gradients, with choices that are given."""
  task = create(small())
  variables, batch = variables_of(task), batch_of(task)
  group = np.asarray(batch["group"])
  assert group.sum() in (1, 2, 3, 5, 6, 7)
  # Two layers of eight rows.
  chosen = np.random.default_rng(0).integers(0, 2, (2, 8)).astype(np.float32)
  layers = iter([*chosen, *chosen, *chosen])

  def straight_through(logits, key, temperature):
    return next(layers) + 0 * logits[:, 0]

  monkeypatch.setattr(router, "straight_through", straight_through)
  batch = task.prepare(jax.random.key(0), batch)

  def total(params):
    return task.loss({**variables, "params": params}, batch, jax.random.key(0))

  step = jax.jit(jax.value_and_grad(total, has_aux=True))
  (value, (collections, sums)), gradient = step(variables["params"])
  targets = np.array([1.0, 0.45])
  sparsity = 1 - chosen.mean(0)
  away = sparsity - targets[group]
  of = lambda x: np.array([x[group == g].mean() for g in (0, 1)])
  linear, quadratic = np.array([0.3, -0.2]), np.array([0.45, 0.1])
  expected = (linear * of(np.abs(away)) + quadratic * of(away**2)).mean()
  weight = float(sums["weight"])
  np.testing.assert_allclose(sums["penalty"] / weight, expected, rtol=1e-5)
  np.testing.assert_allclose(
    sums["sparsity"] / weight, of(sparsity).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(value, sums["loss"] + sums["penalty"], rtol=1e-6)
  # Minimising makes them climb: the gradient is that of the penalty, negative.
  climbing = gradient["multipliers"]
  np.testing.assert_allclose(
    climbing["linear"] / weight, -of(np.abs(away)) / 2, rtol=1e-5
  )
  np.testing.assert_allclose(
    climbing["quadratic"] / weight, -of(away**2) / 2, rtol=1e-5
  )
  assert float(collections["routing"]["step"]) == 1


def test_a_batch_in_parts_has_the_penalty_of_the_whole():
  task = create(small())
  variables = variables_of(task)
  batch = task.prepare(jax.random.key(0), batch_of(task))
  sparsity = jnp.asarray(np.random.default_rng(0).random(8), jnp.float32)
  multipliers = variables["params"]["multipliers"]
  each = task._penalty(multipliers, sparsity, batch["group"])
  whole = (batch["share"] * each).sum()
  parts = sum((batch["share"][i::2] * each[i::2]).sum() for i in range(2))
  np.testing.assert_allclose(whole, parts, rtol=1e-6)
  # Of a group that is not there nothing is asked.
  alone = {**batch, "group": jnp.ones(8, jnp.int32)}
  alone = task.prepare(jax.random.key(0), alone)
  np.testing.assert_allclose(
    alone["share"].sum(), alone["weights"].sum(), rtol=1e-6
  )


def test_evaluation_takes_what_is_likelier_and_tells_the_sparsity():
  task = create(small())
  variables = variables_of(task, seed=2)
  spec = task.batch_spec(4, train=False)
  # Of 24 tokens the last six have labels.
  prompt = np.tile(np.arange(24) <= 24 - 6, (4, 1))

  @jax.jit
  def read(params, tokens):
    _, routes = taps.read(
      task.model, {"params": params}, tokens, names=["*/route"]
    )
    return jnp.stack(list(routes.values()))

  step, totals, rows = jax.jit(task.evaluate_step), {}, {0: [], 1: []}
  for batch in sequences.eval_batches(task.config.data, batch_size=4):
    sums = step(variables, {name: batch[name] for name in spec})
    for name, value in sums.items():
      totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)
    with router.routing(prompt=jnp.asarray(prompt)):
      routes = read(variables["params"], batch["tokens"])
    for row, kept in enumerate(batch["weights"].any(1)):
      if kept:
        rows[int(batch["group"][row])].append(1 - routes[:, row].mean())
  result = task.summarize(totals)
  assert 0 < np.mean(rows[0] + rows[1]) < 1
  np.testing.assert_allclose(result["sparsity"], np.mean(rows[0] + rows[1]))
  np.testing.assert_allclose(result["sparsity_near"], np.mean(rows[0]))
  np.testing.assert_allclose(result["sparsity_far"], np.mean(rows[1]))


def test_backbones_are_frozen_as_the_config_says():
  names = ("layer_0/mixer/router/logits/bias", "multipliers/linear")
  more = ("layer_0/mixer/query/kernel", "layer_1/mixer/value/kernel")
  never = ("layer_0/mixer/out/kernel", "embed/embedding", "layer_0/mlp/gate")
  for variant, trained in (("routers", names), ("projections", names + more)):
    trainable = create(small(variant)).trainable()
    assert [n for n in names + more + never if trainable(n)] == [*trained]


# Compiles three training and evaluation steps.
@pytest.mark.slow
def test_routers_are_trained_on_a_model_that_has_none(tmp_path):
  """What is not trained keeps its bits."""
  config = small("projections")
  config.model.depth = 1
  plain = config.copy_and_resolve_references()
  plain.task = "sequence_labeling"
  plain.model.mixers = ("full",)
  plain.model.mixer_options = {}
  plain.optimizer.learning_rate_rules = ()
  del plain.routing
  config.init.weights = str(tmp_path / "full")
  before = train_and_evaluate(plain, config.init.weights, show=False)
  setup = experiment.create(config)
  with jax.set_mesh(setup.mesh):
    first = weights.initial_state(setup)
  after = train_and_evaluate(config, str(tmp_path / "routed"), show=False)
  assert float(after.collections["routing"]["step"]) == 2
  changed = set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(after.params):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    start = first.params
    for key in name.split("/"):
      start = start[key]
    if not np.array_equal(leaf, start):
      changed.add(name.split("/")[2] if "layer_" in name else name)
  multipliers = {"multipliers/linear", "multipliers/quadratic"}
  assert changed == {"router", "query", "key", "value", *multipliers}
  out = lambda state: state.params["layer_0"]["mixer"]["out"]["kernel"]
  np.testing.assert_array_equal(out(after), out(before))


ERRORS = [
  ({"model.mixers": ("full",)}, r"model.mixers=\('full',\) has no 'routed'"),
  (
    {"routing.targets": (1.0,)},
    r"targets=\(1.0,\) must have a number for each",
  ),
  ({"routing.targets": (1.0, 1.5)}, "shares of layers, from 0 to 1"),
  ({"routing.trained": ("a//b",)}, "routing.trained has 'a//b'"),
  ({"routing.cooling": "3 hours"}, "routing.cooling='3 hours'"),
  ({"routing.last_temperature": 0.0}, "routing.last_temperature=0.0"),
]


@pytest.mark.parametrize(("fields", "message"), ERRORS)
def test_errors_name_what_would_fit(fields, message):
  config = small()
  config.update_from_flattened_dict(fields)
  if "mixers" in str(fields):
    config.model.mixer_options = {}
  with pytest.raises(ValueError, match=message):
    experiment.create(config)
