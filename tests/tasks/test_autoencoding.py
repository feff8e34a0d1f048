"""Autoencoding: sums, micro-batches, exact evaluation, bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks
from configs import autoencoder
from experiment import ranges
from input_pipeline import images as image_data
from training import optimizers

ROWS = 6


def make_config():
  config = autoencoder.get_config("test")
  config.model.width, config.model.groups = 4, 2
  return config


def create(config):
  info = image_data.DatasetInfo(num_eval_examples=ROWS, class_names=("0", "1"))
  return tasks.create(config, info)


@pytest.fixture(scope="module")
def task():
  return create(make_config())


@pytest.fixture(scope="module")
def variables(task):
  return jax.tree.map(lambda x: 2 * x, task.init(jax.random.key(0)))


@pytest.fixture
def batch():
  """Six images, two of which do not count."""
  rng = np.random.default_rng(0)
  mask = np.array([1, 1, 0, 1, 0, 1], np.float32)
  return {
    "image": jnp.asarray(rng.integers(0, 256, (ROWS, 8, 8, 1)), jnp.uint8),
    "mask": jnp.asarray(mask),
    "damaged": jnp.asarray([False, False, True, False, False, False]),
  }


@pytest.fixture(scope="module")
def evaluate(task):
  return jax.jit(task.evaluate_step)


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_loss_is_that_of_the_paper_per_value(batch, variables, reconstruction):
  config = make_config()
  config.loss.update(reconstruction=reconstruction, kl_weight=0.1)
  task = create(config)
  prepared = task.prepare(jax.random.key(1), batch)
  assert prepared["noise"].shape == (ROWS, 4, 4, 2)
  loss = jax.jit(task.loss)
  total, (collections, sums) = loss(variables, prepared, jax.random.key(2))
  assert collections == {}
  images = np.asarray(batch["image"], np.float64) / 127.5 - 1
  apply = jax.jit(task.model.apply, static_argnames="method")
  moments = apply(variables, jnp.asarray(images, jnp.float32), method="encode")
  mean, log_variance = np.split(np.asarray(moments, np.float64), 2, -1)
  deviation = np.exp(log_variance / 2)
  latents = mean + deviation * np.asarray(prepared["noise"])
  back = apply(variables, jnp.asarray(latents, jnp.float32), method="decode")
  error = np.asarray(back, np.float64) - images
  error = np.abs(error) if reconstruction == "l1" else error**2
  nats = (mean**2 + deviation**2 - 1 - log_variance) / 2
  # As in the paper, of all values and latents of an image.
  sides = error.sum((1, 2, 3)), nats.sum((1, 2, 3))
  counts = np.asarray(batch["mask"]) > 0
  expected = (sides[0] + 0.1 * sides[1])[counts].sum() / 64
  assert total == sums["loss"]
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  np.testing.assert_allclose(sums["kl"], sides[1][counts].sum(), rtol=1e-5)
  assert (sums["weight"], sums["damaged"]) == (4, 1)


def test_what_does_not_count_changes_nothing(task, batch, variables, evaluate):
  def gradient(variables, batch):
    prepared = task.prepare(jax.random.key(1), batch)
    key = jax.random.key(2)
    return jax.grad(task.loss, has_aux=True)(variables, prepared, key)[0]

  gradient = jax.jit(gradient)
  counts = batch["mask"][:, None, None, None] > 0
  other = {**batch, "image": jnp.where(counts, batch["image"], 255)}
  for run in (gradient, evaluate):
    a, b = run(variables, batch), run(variables, other)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    # Whatever they are in, as 0 times infinity is NaN.
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(a))


def test_micro_batches_draw_the_same(task, batch, variables):
  prepared = task.prepare(jax.random.key(1), batch)
  loss = jax.jit(task.loss)
  whole = loss(variables, prepared, jax.random.key(2))[0]

  def cut(part):
    return jax.tree.map(lambda x: x[part], prepared)

  halves = [
    loss(variables, cut(part), key)[0]
    for part, key in (
      (slice(0, 3), jax.random.key(3)),
      (slice(3, 6), jax.random.key(4)),
    )
  ]
  np.testing.assert_allclose(sum(halves), whole, rtol=1e-5)


def test_metrics_of_a_split(task, batch, variables, evaluate):
  sums = jax.device_get(evaluate(variables, batch))
  result = task.summarize({k: np.float64(x) for k, x in sums.items()})
  back = jax.jit(task.reconstruct)(variables, batch["image"])
  assert (back.shape, back.dtype) == ((ROWS, 8, 8, 1), jnp.uint8)
  counts = np.asarray(batch["mask"]) > 0
  pair = [np.asarray(x, np.float64)[counts] for x in (batch["image"], back)]
  error = np.square(pair[0] - pair[1]).mean()
  assert result["psnr"] == pytest.approx(10 * math.log10(255**2 / error))
  images = (pair[0] / 127.5 - 1).astype(np.float32)
  moments = task.model.apply(variables, images, method="encode")
  mean, log_variance = np.split(np.asarray(moments), 2, -1)
  drawn = mean + np.exp(log_variance / 2) * np.random.default_rng(
    0
  ).standard_normal((4000, *mean.shape), np.float32)
  assert result["latent_mean"] == pytest.approx(mean.mean(), abs=1e-5)
  assert result["latent_deviation"] == pytest.approx(drawn.std(), rel=0.02)
  assert (result["examples"], result["damaged"]) == (4, 1)
  line = task.describe(result)
  assert line.endswith("nats on 4 images, 1 damaged ones left out")
  report = task.report(result)
  assert report["examples"] == 4
  assert all(math.isfinite(x) for x in report.values())


def test_a_perfect_autoencoder_has_100_decibels(task):
  names = "loss reconstruction kl squared_error latent_mean latent_square"
  sums = dict.fromkeys([*names.split(), "damaged"], np.float64(0))
  assert task.summarize({**sums, "weight": np.float64(3)})["psnr"] == 100


def test_variants():
  for variant in autoencoder.VARIANTS:
    config = autoencoder.get_config(variant)
    ranges.check(config)
    optimizers.check_unused(config.optimizer)
    create(config)
  with pytest.raises(ValueError, match="no variant 'mnist'; it has digits, te"):
    autoencoder.get_config("mnist")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model.name": "lina_d48w768"}, "model.name='lina_d48w768' is of kind"),
    ({"data.image_size": 7}, "data.image_size=7 must be a multiple of 2"),
    ({"model.latent_channel": 2}, "no field of Autoencoder 'latent_channel'"),
  ],
)
def test_configs_that_do_not_fit(change, message):
  config = make_config()
  with config.unlocked():
    config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message):
    create(config)
