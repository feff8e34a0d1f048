"""Diffusion: what is drawn and minimised, and that sums are of examples."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import generation
import tasks
from configs import diffusion
from input_pipeline import visual
from tasks import variational_bound
from tests import parity_helper

ROWS = 6
VIDEO = visual.DatasetInfo(
  num_eval_examples=0,
  class_names=tuple("0123456789"),
  image_shape=(2, 8, 8, 1),
  labels=2,
)
LATENTS = visual.DatasetInfo(
  num_eval_examples=0,
  class_names=tuple("abc"),
  image_shape=(64, 64, 3),
  latent_shape=(8, 8, 4),
  scale=0.5,
)
SMALL = {
  "model.depth": 1,
  "model.width": 24,
  "model.heads": 2,
  "path.times": "uniform",
}
DDPM = {"path.name": "ddpm", "path.prediction": "noise"}


def create(info=VIDEO, variant="test", **fields):
  config = diffusion.get_config(variant)
  with config.unlocked():
    config.update_from_flattened_dict(SMALL | fields)
  return tasks.create(config, info)


def randomised(task):
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  return jax.tree.map(jnp.asarray, parity_helper.randomise(shapes, 0))


@functools.cache
def of_videos():
  task = create()
  return task, randomised(task)


@functools.cache
def gradient_of_videos():
  task, _ = of_videos()
  return jax.jit(jax.grad(lambda v, b: task.loss(v, b, None)[0]))


def make_batch(rows=ROWS, seed=0, info=VIDEO):
  rng = np.random.default_rng(seed)
  mask = np.ones(rows, np.float32)
  mask[2:4] = 0
  made = {
    "label": rng.integers(0, len(info.class_names), (rows, info.labels)),
    "mask": mask,
    "index": np.where(mask > 0, np.arange(rows), -1).astype(np.int32),
  }
  made["label"] = np.squeeze(made["label"].astype(np.int32))
  if info.latent_shape:
    *sides, channels = info.latent_shape
    moments = rng.normal(size=(rows, *sides, 2 * channels))
    return made | {"moments": moments.astype(np.float32)}
  images = rng.integers(0, 256, (rows, *info.image_shape), np.uint8)
  return made | {"image": images, "damaged": np.arange(rows) == 3}


class Plain:
  """Predicts a sum of what it is given, so that targets are what is tested."""

  num_classes = 10

  def apply(self, variables, x, time, *, label, train, method):
    assert train
    assert method is None
    assert label.shape == (len(x), 2)
    return variables["params"] * x + time.reshape(-1, 1, 1, 1, 1) / 999


@pytest.mark.parametrize(
  "fields",
  [
    {},
    DDPM,
    {**DDPM, "path.prediction": "velocity", "path.schedule": "cosine"},
    {"path.prediction": "clean"},
  ],
)
def test_the_loss_is_the_error_of_what_is_predicted(fields):
  task = create(**fields)
  task.model, variables = Plain(), {"params": 0.7}
  batch = task.prepare(jax.random.key(1), make_batch())
  x, noise, time = (np.asarray(batch[n]) for n in ("x", "noise", "time"))
  if "path.schedule" in fields:
    steps = np.arange(1001) / 1000
    bar = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.cumprod(1 - np.minimum(1 - bar[1:] / bar[:-1], 0.999))
  else:
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  if fields.get("path.name") == "ddpm":
    of_step = alpha_bar[time.astype(int)].reshape(-1, 1, 1, 1, 1)
    alpha, sigma = np.sqrt(of_step), np.sqrt(1 - of_step)
  else:
    sigma = time.reshape(-1, 1, 1, 1, 1) / 1000
    alpha = 1 - sigma
  targets = {
    "noise": noise,
    "clean": x,
    "velocity": alpha * noise - sigma * x
    if "path.name" in fields
    else noise - x,
  }
  made = 0.7 * (alpha * x + sigma * noise) + time.reshape(-1, 1, 1, 1, 1) / 999
  wanted = targets[task.config.path.prediction]
  expected = np.square(made - wanted).mean((1, 2, 3, 4))
  np.testing.assert_allclose(task.losses(variables, batch), expected, rtol=1e-4)
  mask = make_batch()["mask"]
  total, (_, sums) = task.loss(variables, batch, jax.random.key(9))
  np.testing.assert_allclose(total, (expected * mask).sum(), rtol=1e-4)
  assert sums["weight"] == mask.sum() == task.weight(batch)
  assert sums["damaged"] == 1


def test_pixels_and_latents_have_a_deviation_of_about_one():
  task, _ = of_videos()
  given = make_batch()
  batch = task.prepare(jax.random.key(0), given)
  x = np.asarray(batch["x"])
  real = given["mask"] > 0
  np.testing.assert_allclose(
    x[real], given["image"][real] / 127.5 - 1, atol=1e-6
  )
  assert not x[~real].any()
  task = create(LATENTS, "imagenet_256")
  given = make_batch(info=LATENTS)
  given["moments"][..., 4:] = -50
  batch = task.prepare(jax.random.key(0), given)
  np.testing.assert_allclose(
    batch["x"][0], given["moments"][0, ..., :4] / 2, atol=1e-6
  )


def test_what_is_drawn():
  task, _ = of_videos()
  rows = 1500
  given = make_batch(rows)
  given["label"][:50] = -1
  batch = jax.jit(task.prepare)(jax.random.key(0), given)
  time, label = np.asarray(batch["time"]), np.asarray(batch["label"])
  assert stats.kstest(time / 1000, stats.uniform.cdf).pvalue > 1e-3
  noise = np.asarray(batch["noise"])[:100].ravel()
  assert stats.kstest(noise, stats.norm.cdf).pvalue > 1e-3
  # Both classes of an example are lost together.
  assert (label[:50] == 10).all()
  lost = label[50:] == 10
  assert (lost[:, 0] == lost[:, 1]).all()
  assert abs(lost[:, 0].mean() - 0.1) < 0.03
  assert (label[50:][~lost] == given["label"][50:][~lost]).all()
  draw = lambda task: np.asarray(
    jax.vmap(task._time)(jax.random.split(jax.random.key(1), 4000))
  )
  steps = draw(create(**{**DDPM, "path.steps": 7}))
  assert stats.chisquare(np.bincount(steps.astype(int))).pvalue > 1e-3
  assert sorted({*steps}) == list(range(7))
  logits = stats.logistic.ppf(
    draw(create(**{"path.times": "logit_normal"})) / 1000
  )
  assert stats.kstest(logits, stats.norm.cdf).pvalue > 1e-3


def test_parts_of_a_batch_add_up():
  task, variables = of_videos()
  batch = task.prepare(jax.random.key(1), make_batch())
  gradient = gradient_of_videos()
  whole = gradient(variables, batch)
  parts = [
    gradient(variables, jax.tree.map(lambda x, n=n: x[n::2], batch))
    for n in range(2)
  ]
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-4, atol=1e-5),
    whole,
    *parts,
  )
  assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(whole))


def test_what_is_masked_adds_nothing():
  task, variables = of_videos()
  batch = task.prepare(jax.random.key(1), make_batch())
  empty = {**batch, "noise": batch["noise"].at[2:4].set(1e30)}
  one, two = (gradient_of_videos()(variables, b) for b in (batch, empty))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_evaluation_is_of_examples_and_not_of_their_batches():
  task, variables = of_videos()
  whole = make_batch()
  evaluate = jax.jit(task.evaluate_step)
  expected = evaluate(variables, whole)
  order = np.array([4, 1, 0, 5, 3, 2])
  moved = evaluate(variables, {n: x[order] for n, x in whole.items()})
  np.testing.assert_allclose(moved["loss"], expected["loss"], rtol=1e-5)
  assert moved["weight"] == 4
  other = {**whole, "index": whole["index"] + 10}
  assert abs(evaluate(variables, other)["loss"] - expected["loss"]) > 1e-3


def _bits(x, noisy, t, mean_of, log_variance_of):
  """The bound of one number, restated with sums over steps."""
  betas = np.linspace(1e-4, 0.02, 1000)
  bar = np.cumprod(1 - betas)
  before = bar[t - 1] if t else 1.0
  at = max(t, 1)
  small = np.log(betas[at] * (1 - bar[at - 1]) / (1 - bar[at]))
  of_x = betas[t] * np.sqrt(before) / (1 - bar[t])
  of_noisy = (1 - before) * np.sqrt(1 - betas[t]) / (1 - bar[t])
  mean = of_x * mean_of + of_noisy * noisy
  share = (log_variance_of + 1) / 2
  log_variance = share * np.log(betas[t]) + (1 - share) * small
  if t == 0:
    law = stats.norm(mean, np.exp(log_variance / 2))
    low = -np.inf if x < -0.999 else x - 1 / 255
    high = np.inf if x > 0.999 else x + 1 / 255
    return -np.log2(max(law.cdf(high) - law.cdf(low), 1e-12))
  apart = (of_x * x + of_noisy * noisy - mean) ** 2
  ratio = np.exp(small - log_variance)
  nats = (log_variance - small + ratio - 1 + apart / np.exp(log_variance)) / 2
  return nats / np.log(2)


def test_the_bound_of_a_learned_variance():
  path = generation.ddpm()
  rng = np.random.default_rng(0)
  time = np.array([0.0, 0.0, 1.0, 400.0, 999.0])
  clean = rng.uniform(-1, 1, (5, 3)).astype(np.float32)
  clean[:2, 0] = -1, 1
  noise, guess, variance = rng.normal(size=(3, 5, 3)).astype(np.float32)
  noisy = np.asarray(path.add_noise(clean, noise, jnp.asarray(time)))
  prediction = (0.9 * noise + 0.1 * guess).astype(np.float32)
  variance = variance / 3
  bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[time.astype(int)]
  bar = bar[:, None]
  mean_of = (noisy - np.sqrt(1 - bar) * prediction) / np.sqrt(bar)
  expected = [
    np.mean(
      [
        _bits(*values)
        for values in zip(
          clean[i],
          noisy[i],
          [int(time[i])] * 3,
          mean_of[i],
          variance[i],
          strict=True,
        )
      ]
    )
    for i in range(5)
  ]
  bits = lambda p, v: variational_bound.bits(
    clean, noisy, jnp.asarray(time, jnp.float32), p, v, path
  )
  np.testing.assert_allclose(bits(prediction, variance), expected, rtol=2e-3)
  of_prediction, of_variance = jax.grad(
    lambda p, v: bits(p, v).sum(), argnums=(0, 1)
  )(prediction, variance)
  assert not of_prediction.any()
  assert (np.abs(of_variance) > 0).all()
  assert np.isfinite(of_variance).all()


def test_a_learned_variance_is_trained_by_the_bound_besides():
  task = create(LATENTS, "imagenet_256")
  variables = randomised(task)
  batch = task.prepare(jax.random.key(0), make_batch(info=LATENTS))
  noisy = task.path.add_noise(batch["x"], batch["noise"], batch["time"])
  made = jax.jit(task.predict)(variables, batch, noisy)
  prediction, variance = jnp.split(made, 2, axis=-1)
  plain = np.square(prediction - batch["noise"]).mean((1, 2, 3))
  bits = variational_bound.bits(
    batch["x"], noisy, batch["time"], prediction, variance, task.path
  )
  assert (bits > 0).all()
  np.testing.assert_allclose(
    jax.jit(task.losses)(variables, batch), plain + bits, rtol=1e-4
  )


def test_a_model_may_have_several_targets():
  task, _ = of_videos()
  batch = task.prepare(jax.random.key(0), make_batch())
  half = lambda target: target.reshape(ROWS, 2, 4, 2, 4, 2, 1).mean((3, 5))

  class Coarse:
    num_classes = 10

    def loss_targets(self, target):
      return (half(target), 0.25), (target, 2.0)

    def apply(self, variables, x, time, *, label, train, method):
      assert method == "predictions"
      assert label.shape == (ROWS, 2)
      return half(x) + variables, x

  own = types.SimpleNamespace(
    model=Coarse(), path=task.path, _learned_variance=False
  )
  own.predict = functools.partial(type(task).predict, own)
  made = type(task).losses(own, 3.0, batch)
  noisy = task.path.add_noise(batch["x"], batch["noise"], batch["time"])
  target = task.path.target(batch["x"], batch["noise"], batch["time"])
  rows = lambda x: np.square(x).mean(tuple(range(1, x.ndim)))
  expected = 0.25 * rows(half(noisy) + 3 - half(target))
  expected += 2 * rows(noisy - target)
  np.testing.assert_allclose(made, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("info", "fields", "message"),
  [
    (VIDEO, {"model.learned_variance": True}, "learned_variance=True is of"),
    (VIDEO, {"model.name": "resnet18"}, "of kind 'image', but"),
    (VIDEO, {"model.patch_size": (1, 3, 3)}, "patch_size"),
    (VIDEO, {"model.patch_size": (4, 4)}, "patch_size"),
  ],
)
def test_what_does_not_fit(info, fields, message):
  def make():
    jax.eval_shape(create(info, **fields).init, jax.random.key(0))

  with pytest.raises(ValueError, match=message):
    make()
