"""Forecasts: sums written out, what rows carry, and a run that goes on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiment
import tasks
from configs import forecasting as recipes
from experiment import weights
from input_pipeline import dynamics
from models import forecasting
from tasks import forecast_picture, forecast_quality
from train import train_and_evaluate

ROWS = 2


def small(row="gru_attention_additive", **fields):
  config = recipes.get_config(f"lorenz96_small-{row}")
  config.data.options.update(size=4, transient=5.0)
  config.data.update(trajectories=ROWS, states=40, length=5)
  config.data.update(eval_examples=3, warm_up=6, horizon=8, num_threads=0)
  config.model.update(dict(width=4, window=5))
  config.batch_size = config.eval_batch_size = ROWS
  config.train_for = config.evaluate_every = config.checkpoint.every = "4 steps"
  config.optimizer.warmup = "0 steps"
  config.update_from_flattened_dict(fields)
  return config


def create(config):
  return tasks.create(config, dynamics.dataset_info(config.data))


def randomise(variables):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda a: 0.4 * rng.standard_normal(a.shape).astype(np.float32), variables
  )


@functools.cache
def trained_on(row, ahead):
  """A task, random variables, and three batches of training."""
  config = small(row, **{"data.ahead": ahead, "noise": 0.0})
  task = create(config)
  stream = dynamics.train_iterator(config.data, seed=0, global_batch_size=ROWS)
  batches = [next(stream) for _ in range(3)]
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  variables = randomise({"params": shapes["params"]})
  if task.stateful:
    variables["carry"] = task.model.init_carry(ROWS)
  return task, variables, batches


@pytest.mark.parametrize(
  ("row", "ahead"), [("gru_attention_additive", 2), ("transformer_coupled", 0)]
)
def test_the_loss_is_that_of_whole_trajectories(row, ahead):
  task, variables, batches = trained_on(row, ahead)
  apply = jax.jit(task.model.apply, static_argnames="method")
  params = {"params": variables["params"]}
  step = jax.jit(task.loss)
  whole = np.concatenate([b["states"][:, :5] for b in batches], axis=1)
  for n, raw in enumerate(batches):
    batch = task.prepare(jax.random.key(0), raw)
    loss, (moved, sums) = step(variables, batch, jax.random.key(0))
    # A row goes on as if it had been one sequence from its beginning.
    seen = whole[:, : 5 * (n + 1)] if task.stateful else raw["states"][:, :5]
    made, carry = apply(params, seen)
    made = [np.asarray(made[:, -5:])]
    for _ in range(ahead):
      state, carry = apply(params, made[-1][:, -1], carry, method="step")
      made.append(np.asarray(state)[:, None])
    error = np.concatenate(made, 1) - raw["states"][:, 1:]
    np.testing.assert_allclose(loss, (error**2).mean(-1).sum(), rtol=1e-4)
    assert sums["weight"] == ROWS * (5 + ahead)
    assert set(moved) == ({"carry"} if task.stateful else set())
    variables = {**variables, **moved}
  assert task.units_per_example == 5 + ahead


def test_rows_begin_anew_and_no_gradient_goes_back():
  task, variables, batches = trained_on("gru_attention_additive", 2)
  batch = task.prepare(jax.random.key(0), batches[0])
  noise = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan), variables["carry"])
  step = jax.jit(task.loss)

  def sums(carry, begins):
    own = {**batch, "begins": np.array(begins)}
    return step({**variables, "carry": carry}, own, jax.random.key(0))[0]

  empty = task.model.init_carry(ROWS)
  fresh = sums(empty, [False, False])
  np.testing.assert_array_equal(sums(noise, [True, True]), fresh)
  ones = jax.tree.map(jnp.ones_like, empty)
  assert abs(sums(ones, [True, False]) - fresh) > 1e-3

  moved = lambda v: jax.tree.leaves(task.loss(v, batch, None)[1][0])
  total = lambda v: sum(map(jnp.sum, moved(v)))
  gradient = jax.jit(jax.grad(total))(variables)
  assert not any(np.any(a) for a in jax.tree.leaves(gradient["params"]))


def test_noise_is_in_inputs_alone():
  task, _, batches = trained_on("gru_attention_additive", 2)
  config = small(noise=0.5, **{"data.ahead": 2})
  batch = create(config).prepare(jax.random.key(0), batches[0])
  clean = task.prepare(jax.random.key(0), batches[0])
  np.testing.assert_array_equal(batch["targets"], clean["targets"])
  np.testing.assert_array_equal(clean["inputs"], batches[0]["states"][:, :5])
  noise = batch["inputs"] - clean["inputs"]
  assert 0.3 < np.std(noise) < 0.7


def quality(made, truth, weights, unit=1.0):
  totals = jax.jit(
    functools.partial(
      forecast_quality.sums, threshold=0.5, strict_threshold=0.05
    )
  )(made, truth, weights)
  totals = {n: np.asarray(x, float) for n, x in totals.items()}
  means = {n: x / totals["weight"] for n, x in totals.items() if not x.ndim}
  return forecast_quality.summarize(means, totals, unit)


def test_how_long_forecasts_are_valid():
  rng = np.random.default_rng(0)
  truth = rng.standard_normal((5, 8, 3)).astype(np.float32)
  made = truth.copy()
  # Wrong by that much in all numbers, or in one; for a time or for good.
  made[0, 3] += 0.6
  made[1, 2:, 0] += 0.8  # Root mean square 0.46.
  made[1, 6:, 0] += 0.2  # 0.58.
  made[2, 5:] = np.nan
  made[3, 1] += 0.04
  made[4] = 1e30
  weights = np.array([1, 1, 1, 1, 0], np.float32)
  found = quality(made, truth, weights, unit=0.5)
  np.testing.assert_allclose(found["valid_time"], 0.5 * (3 + 6 + 5 + 8) / 4)
  # Half of them reach six.
  assert found["valid_time_median"] == 0.5 * 6
  np.testing.assert_allclose(
    found["valid_time_strict"], 0.5 * (3 + 2 + 5 + 8) / 4
  )
  assert (found["complete"], found["diverged"]) == (0.25, 0.25)
  assert (found["loss"], found["trajectories"]) == (0, 4)
  kept = [0, 1, 3]
  power = lambda x: (np.abs(np.fft.rfft(x, axis=1)) ** 2).mean((0, 2))[1:]
  ratio = power(made[kept]) / power(truth[:4])
  np.testing.assert_allclose(
    found["spectrum_error"], np.abs(10 * np.log10(ratio)).mean(), rtol=1e-3
  )
  # Of what leaves the attractor nothing is left to compare.
  for far in (1e30, np.nan):
    lost = quality(np.full_like(made, far), truth, np.ones(5, np.float32))
    assert (lost["diverged"], lost["valid_time"]) == (1, 0)
    assert lost["loss"] == forecast_quality.ESCAPED**2
  report = tasks.find("forecasting").report(lost)
  assert report["spectrum_error"] is None


def test_evaluation_forecasts_from_what_was_seen():
  config = small(**{"lyapunov_exponent": 2.0})
  task = create(config)
  _, variables, _ = trained_on("gru_attention_additive", 2)
  batch = next(iter(dynamics.eval_batches(config.data, batch_size=ROWS)))
  sums = jax.jit(task.evaluate_step)(variables, batch)
  given, truth = np.split(batch["states"], [6], axis=1)
  made = jax.jit(forecasting.forecast, static_argnums=(0, 3))(
    task.model, {"params": variables["params"]}, given, 8
  )
  error = np.sqrt(np.square(made - truth).mean(-1))
  first = np.square(error[:, 0]).sum()
  np.testing.assert_allclose(sums["loss"], first, rtol=1e-4)
  valid = np.cumprod(error < 0.5, axis=1).sum()
  np.testing.assert_allclose(sums["survivors"].sum(), valid)
  totals = {n: np.asarray(x, float) for n, x in sums.items()}
  result = task.summarize(totals)
  # A step is 0.05, and 0.1 of a Lyapunov time.
  np.testing.assert_allclose(result["valid_time"], valid / ROWS * 0.1)
  assert f"valid for {result['valid_time']:.3f}" in task.describe(result)
  assert set(task.directions) <= set(task.report(result))


def run(workdir, steps, **options):
  """Trains on the four devices of tests, saved after every two steps."""
  config = small(**{"data.trajectories": 4, "optimizer.schedule": "constant"})
  config.batch_size = config.eval_batch_size = 4
  config.evaluate_every = config.checkpoint.every = "2 steps"
  config.optimizer.final_learning_rate = 0.0
  config.train_for = f"{steps} steps"
  return config, train_and_evaluate(config, str(workdir), **options)


# Three runs, each with programs of its own.
@pytest.mark.slow
def test_a_run_goes_on_with_what_rows_carried(tmp_path):
  _, straight = run(tmp_path / "straight", 4, show=False)
  run(tmp_path / "half", 2, show=False)
  config, state = run(tmp_path / "half", 4, override_config=True)
  assert set(state.collections) == {"carry"}
  for own, other in zip(
    jax.tree.leaves((state.params, state.collections)),
    jax.tree.leaves((straight.params, straight.collections)),
    strict=True,
  ):
    np.testing.assert_array_equal(own, other)
  for leaf in jax.tree.leaves(state.collections):
    assert np.any(leaf)
    # Each device has the rows that it computes.
    assert leaf.sharding.shard_shape(leaf.shape)[0] == 1
  assert (tmp_path / "half" / "forecast.png").exists()
  # Another run begins with the weights, whatever its rows.
  config.init.weights = str(tmp_path / "half")
  config.data.trajectories = config.batch_size = 8
  state = weights.initial_state(experiment.create(config))
  for leaf in jax.tree.leaves(state.collections):
    assert len(leaf) == 8
    assert not np.any(leaf)


def test_the_picture(tmp_path):
  truth = np.zeros((6, 3))
  made = np.where(np.arange(6)[:, None] > 3, np.nan, truth)
  name = forecast_picture.write(
    str(tmp_path), truth, made, unit=0.1, label="time"
  )
  assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  ("row", "fields", "error"),
  [
    (
      "transformer_additive",
      {"data.order": "consecutive"},
      "the model is stateless: it needs data.order='shuffled'",
    ),
    (
      "transformer_additive",
      {"data.length": 7},
      "data.length=7 states are more than model.window=5",
    ),
    ("gru", {"accumulation_steps": 2}, "accumulation_steps=2, .*must be 1"),
    ("gru", {"model.name": "dit_s_2"}, "needs one of .*forecasting"),
  ],
)
def test_configs_that_do_not_fit(row, fields, error):
  config = small(row)
  if "model.name" in fields:
    config.model = {"name": fields["model.name"]}
  else:
    config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=error):
    create(config)
