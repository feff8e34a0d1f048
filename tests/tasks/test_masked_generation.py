"""Masked generation: what is drawn, and that sums are of examples alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import tasks
from configs import lina
from input_pipeline import latents
from models.lina_attention import GATE_LEAVES
from tasks import mask_draws
from tests import parity_helper
from training import evaluation, sharding, train_state, train_step

PLACES, ROWS = 16, 8
INFO = latents.DatasetInfo(
  num_eval_examples=0, class_names=tuple("0123456789"), image_shape=(8, 8, 1)
)


def create(info=INFO, **fields):
  config = lina.get_config("test")
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return tasks.create(config, info)


@functools.cache
def task_and_variables():
  """Randomised, as a head that was just initialised has no velocity."""
  task = create()
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  # Gates about one, lest a denominator vanish.
  variables = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(x + (path[-1].key in GATE_LEAVES)),
    parity_helper.randomise(shapes, 0),
  )
  return task, variables


def make_batch(rows=ROWS, seed=0):
  rng = np.random.default_rng(seed)
  mask = np.ones(rows, np.float32)
  mask[2:4] = 0
  return {
    "image": rng.integers(0, 256, (rows, 8, 8, 1), np.uint8),
    "label": np.arange(rows, dtype=np.int32) % 10,
    "mask": mask,
    "damaged": np.arange(rows) == 3,
    "index": np.where(mask > 0, np.arange(rows), -1).astype(np.int32),
  }


def test_masks_have_the_distribution_of_the_paper():
  ratio = lina.get_config("test").mask_ratio
  keys = jax.random.split(jax.random.key(0), 20_000)
  draw = jax.vmap(lambda key: mask_draws.visible_count(key, ratio, 256))
  counts = np.asarray(draw(keys))
  masked = stats.truncnorm((0.7 - 1) / 0.25, 0.0, loc=1.0, scale=0.25)
  assert mask_draws.most_visible(ratio, 256) == 77 == counts.max()
  assert counts.min() == 0
  # Rounded: the share below k + 1/2.
  for count in (0, 10, 38, 60):
    expected = masked.sf(1 - (count + 0.5) / 256)
    assert abs((counts <= count).mean() - expected) < 0.02, count


def test_a_batch_has_one_count_and_each_image_its_places():
  task, _ = task_and_variables()
  prepare = jax.jit(task.prepare)
  counts, first = [], []
  for seed in range(60):
    visible = np.asarray(prepare(jax.random.key(seed), make_batch())["visible"])
    assert visible.shape == (ROWS, 5)
    real = visible < PLACES
    counts.append(real[0].sum())
    assert (real.sum(1) == counts[-1]).all()
    # Padding comes last, and no place twice.
    assert (np.sort(real)[:, ::-1] == real).all()
    assert all(
      len({*row[:n]}) == n for row, n in zip(visible, real.sum(1), strict=True)
    )
    if counts[-1]:
      first.extend(visible[:, 0])
  assert {*counts} == set(range(6))
  # All places are as likely.
  assert stats.chisquare(np.bincount(first, minlength=PLACES)).pvalue > 1e-3


def test_times_are_of_the_table_and_noise_is_normal():
  tokens = jnp.zeros((500, 3))
  times, noise = mask_draws.times_and_noise(jax.random.key(0), 4, tokens)
  times, noise = np.asarray(times), np.asarray(noise)
  assert times.shape == (4, 500)
  assert noise.shape == (4, 500, 3)
  assert (times == np.round(times)).all()
  assert 1 <= times.min() < times.max() <= 1000
  normal = stats.logistic.ppf((times.ravel() - 0.5) / 1000)
  assert stats.kstest(normal, stats.norm.cdf).pvalue > 1e-3
  assert stats.kstest(noise.ravel(), stats.norm.cdf).pvalue > 1e-3


def test_some_images_lose_their_class():
  batch = make_batch(4000)
  batch["label"][:100] = -1
  task, _ = task_and_variables()
  label = np.asarray(jax.jit(task.prepare)(jax.random.key(0), batch)["label"])
  # What has no class is learned without one.
  assert (label[:100] == 10).all()
  dropped = label[100:] == 10
  assert (label[100:][~dropped] == batch["label"][100:][~dropped]).all()
  assert abs(dropped.mean() - 0.1) < 0.02


def test_pixels_become_tokens():
  task, _ = task_and_variables()
  batch = make_batch()
  tokens = np.asarray(task.prepare(jax.random.key(0), batch)["tokens"])
  # The third place is in the upper row: pixels 0, 1 of rows and 4, 5.
  expected = batch["image"][0, :2, 4:6, 0].reshape(-1) / 127.5 - 1
  np.testing.assert_allclose(tokens[0, 2], expected, rtol=1e-6)
  assert not tokens[2:4].any()


def test_latents_and_texts():
  task = create(
    dataclasses.replace(
      INFO, latent_shape=(4, 6, 2), scale=0.5, text_shape=(3, 5)
    ),
    **{
      "model.grid": (2, 3),
      "model.patch_size": 2,
      "model.token_dim": 8,
      "model.text_width": 5,
    },
  )
  rows, rng = 400, np.random.default_rng(0)
  mean = rng.standard_normal((rows, 4, 6, 2)).astype(np.float32)
  batch = {
    "moments": np.concatenate([mean, np.full_like(mean, -40)], -1),
    "text": rng.standard_normal((rows, 3, 5)).astype(np.float32),
    "text_length": rng.integers(1, 4, rows).astype(np.int32),
    "mask": np.ones(rows, np.float32),
  }
  assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {
    n: (x.shape, x.dtype) for n, x in task.batch_spec(rows, train=True).items()
  }
  prepared = jax.jit(task.prepare)(jax.random.key(0), batch)
  tokens = task.model.patchify(jnp.asarray(mean) * 0.5)
  np.testing.assert_allclose(prepared["tokens"], tokens, atol=1e-6)
  length = np.asarray(prepared["text_length"])
  dropped = length == 0
  assert 0.05 < dropped.mean() < 0.15
  assert (length[~dropped] == batch["text_length"][~dropped]).all()
  few = {name: array[:2] for name, array in prepared.items()}
  variables = jax.eval_shape(task.init, jax.random.key(0))
  shape = jax.eval_shape(task.losses, variables, few)
  assert shape.shape == (2,)
  # Draws of latents are of each step.
  batch["moments"] = np.zeros_like(batch["moments"])
  drawn = [
    np.asarray(jax.jit(task.prepare)(jax.random.key(seed), batch)["tokens"])
    for seed in (0, 1)
  ]
  assert np.abs(drawn[0] - drawn[1]).mean() > 0.1
  np.testing.assert_allclose(drawn[0].std(), 0.5, rtol=0.05)


def test_the_loss_at_the_start_is_that_of_no_velocity():
  task = create(noise_draws=64)
  variables = jax.jit(task.init)(jax.random.key(0))
  prepared = jax.jit(task.prepare)(jax.random.key(1), make_batch())
  losses = np.asarray(jax.jit(task.losses)(variables, prepared))
  tokens = np.asarray(prepared["tokens"])
  visible = np.asarray(prepared["visible"])
  for row in range(ROWS):
    masked = np.setdiff1d(np.arange(PLACES), visible[row])
    # E |noise - x|^2
    expected = 1 + np.square(tokens[row, masked]).mean()
    np.testing.assert_allclose(losses[row], expected, rtol=0.08)


@functools.cache
def updated(accumulation_steps, shape):
  """Gradients, by a step of SGD, and metrics."""
  task, variables = task_and_variables()
  tx = optax.sgd(1.0)
  step = train_step.make_train_step(
    task,
    tx,
    lambda step: 1.0,
    task.config,
    accumulation_steps=accumulation_steps,
  )
  state = train_state.create_state(
    variables, tx, jax.random.key(1), use_ema=False
  )
  batch = {k: v for k, v in make_batch().items() if k != "index"}
  config = task.config.mesh.copy_and_resolve_references()
  config.update(data=shape[0], fsdp=shape[1])
  devices = jax.devices()[: shape[0] * shape[1]]
  mesh = sharding.create_mesh(config, devices)
  with jax.set_mesh(mesh):
    new, metrics = jax.jit(step)(state, evaluation.put_batch(batch, mesh))
  moved = jax.tree.map(lambda a, b: a - b, state.params, new.params)
  return jax.device_get((moved, metrics))


# Compiles training steps.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("accumulation_steps", "shape"), [(2, (1, 1)), (1, (2, 2))]
)
def test_micro_batches_and_devices_change_nothing(accumulation_steps, shape):
  """Bit for bit the same draws: the update is that of the whole batch."""
  expected, metrics = updated(1, (1, 1))
  moved, again = updated(accumulation_steps, shape)
  np.testing.assert_allclose(again["loss"], metrics["loss"], rtol=1e-5)
  assert again["damaged"] == 1
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest),
    moved,
    expected,
  )


def test_padding_weighs_nothing():
  task, variables = task_and_variables()
  loss = jax.jit(lambda batch: task.loss(variables, batch, None))
  prepared = jax.jit(task.prepare)(jax.random.key(0), make_batch())
  total, (_, sums) = loss(prepared)
  assert float(sums["weight"]) == ROWS - 2
  kept = np.asarray(prepared["mask"]) > 0
  few = {name: array[kept] for name, array in prepared.items()}
  np.testing.assert_allclose(loss(few)[0], total, rtol=1e-5)
  # Whatever is in it.
  prepared["tokens"] = jnp.where(kept[:, None, None], prepared["tokens"], 1e30)
  np.testing.assert_allclose(loss(prepared)[0], total, rtol=1e-6)


def test_evaluation_is_of_each_example_alone():
  task, variables = task_and_variables()
  step = jax.jit(task.evaluate_step)
  batch = make_batch()
  whole = step(variables, batch)
  assert float(whole["weight"]) == ROWS - 2
  parts = [
    step(variables, {name: array[rows] for name, array in batch.items()})
    for rows in (np.array([7, 0, 2, 5]), np.array([6, 1, 3, 4]))
  ]
  total = sum(float(part["loss"]) for part in parts)
  np.testing.assert_allclose(total, whole["loss"], rtol=1e-5)
  other = dict(batch, index=batch["index"] + 100)
  assert abs(step(variables, other)["loss"] - whole["loss"]) > 1e-3


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model.name": "resnet50"}, "'resnet50' is of kind 'image'"),
    ({"model.grid": (4, 5)}, r"of 8 x 8 x 1, but .* are for 8 x 10 x 1"),
    ({"model.token_dim": 12}, r"data.channels=1 .*8 x 8 x 1.*for 8 x 8 x 3"),
    ({"model.text_width": 8}, r"text_width=8 does not fit data.text='', .* 0"),
    ({"mask_ratio.low": 1.0}, r"mask_ratio.low=1.0 must be below"),
    ({"mask_ratio.low": 0.01}, r"mask_ratio.low=0.01 of 16 tokens"),
  ],
)
def test_what_does_not_fit(fields, message):
  if "model.name" in fields:
    fields = {"model": {"name": fields["model.name"]}, **fields}
  with pytest.raises(ValueError, match=message):
    create(**fields)


def test_several_labels_are_refused():
  with pytest.raises(ValueError, match="several labels"):
    create(dataclasses.replace(INFO, many_labels=True))
