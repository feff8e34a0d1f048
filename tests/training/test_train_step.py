import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import tasks
from input_pipeline import images
from training import placement, sharding, train_state, train_step

BATCH, SIZE, CLASSES = 16, 5, 7


class Net(nn.Module):
  """Small, but with everything a step must carry: statistics and dropout."""

  batch_norm: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Dense(12)(x.reshape(len(x), -1))
    if self.batch_norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(nn.gelu(x))
    return nn.Dense(CLASSES)(x)


def get_config(**fields):
  config = ml_collections.ConfigDict(
    dict(
      task="classification",
      model=dict(name="resnet50"),
      dtype="float32",
      frozen_trunk=False,
      data=dict(image_size=SIZE, channels=3, mean=(0.4,) * 3, std=(0.3,) * 3),
      loss=dict(name="softmax", label_smoothing=0.1),
      mixing=dict(mixup_alpha=0.0, cutmix_alpha=0.0),
      ema=dict(decay=0.0, warmup=False, every=1),
    )
  )
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return config


def make_task(model, config=None, num_classes=CLASSES):
  info = images.DatasetInfo(
    num_eval_examples=0, class_names=tuple("abcdefghij"[:num_classes])
  )
  task = tasks.create(config or get_config(), info)
  task.model = model
  return task


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  mask = np.ones(BATCH, np.float32)
  mask[[3, 10]] = 0
  return {
    "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
    "label": rng.integers(0, CLASSES, BATCH, np.int32),
    "mask": mask,
    "damaged": mask == 0,
  }


def make(config, model=None, tx=None, accumulation_steps=1, trainable=None):
  tx = tx or optax.sgd(0.1)
  task = make_task(model or Net(), config)
  state = train_state.create_state(
    task.init(jax.random.key(0)),
    tx,
    jax.random.key(1),
    use_ema=config.ema.decay > 0,
    trainable=trainable,
  )
  step = train_step.make_train_step(
    task,
    tx,
    lambda step: 0.1,
    config,
    accumulation_steps=accumulation_steps,
    trainable=trainable,
  )
  return state, jax.jit(step), task


def statistics(state):
  return state.collections["batch_stats"]["BatchNorm_0"]


def assert_trees_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# Compiles several training steps.
@pytest.mark.slow
def test_one_step_is_gradient_descent_on_the_masked_mean():
  state, step, task = make(get_config())
  batch = make_batch()
  new, metrics = step(state, batch)

  def reference(params):
    keep = batch["mask"] > 0
    images = (batch["image"][keep] / 255 - 0.4) / 0.3
    logits = task.model.apply(
      {"params": params}, jnp.asarray(images), train=True
    )
    targets = (
      jax.nn.one_hot(batch["label"][keep], CLASSES) * 0.9 + 0.1 / CLASSES
    )
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

  loss, grads = jax.value_and_grad(reference)(state.params)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
  assert_trees_close(new.params, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(
    metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5
  )
  assert int(new.step) == 1


@pytest.mark.parametrize("n", [2, 4, 8])
def test_accumulation_gives_the_update_of_the_large_batch(n):
  # Not equal weights: the masked examples fall into different micro-batches.
  batch = make_batch()
  tx = optax.adamw(0.01)
  state, step, _ = make(get_config(), tx=tx)
  _, accumulating, _ = make(get_config(), tx=tx, accumulation_steps=n)
  large, large_metrics = step(state, batch)
  small, small_metrics = accumulating(state, batch)
  assert_trees_close(small.params, large.params, rtol=2e-5, atol=1e-6)
  assert_trees_close(small_metrics, large_metrics, rtol=2e-5)


def test_accumulation_moves_running_statistics_once():
  model = Net(batch_norm=True)
  batch = make_batch()
  state, step, _ = make(get_config(), model)
  _, accumulating, _ = make(get_config(), model, accumulation_steps=4)
  large, _ = step(state, batch)
  small, _ = accumulating(state, batch)
  # Means of equal parts average to the mean of the whole; variances do not.
  assert_trees_close(
    statistics(small)["mean"],
    statistics(large)["mean"],
    rtol=1e-4,
    atol=1e-6,
  )


def _without_three(why):
  """A batch of which three rows do not count, and that of the others."""
  batch, out = make_batch(), [3, 4, 10]
  batch["mask"][:] = 1
  batch["damaged"][:] = False
  if why == "masked":
    batch["mask"][out] = 0
  else:
    batch["label"][out] = -1 if why == "no class" else CLASSES
  return batch, {k: np.delete(v, out, axis=0) for k, v in batch.items()}


def test_what_does_not_count_acts_on_nothing():
  state, step, _ = make(get_config(), Net(batch_norm=True))
  for why in ("masked", "no class", "beyond the classes"):
    batch, rest = _without_three(why)
    new, metrics = step(state, batch)
    expected, expected_metrics = step(state, rest)
    assert metrics.pop("unlabelled") == (0 if why == "masked" else 3)
    assert expected_metrics.pop("unlabelled") == 0
    assert_trees_close(metrics, expected_metrics, rtol=2e-5)
    for part in ("params", "collections"):
      assert_trees_close(
        getattr(new, part), getattr(expected, part), rtol=1e-5, atol=1e-6
      )


def test_what_has_no_class_is_in_no_mixture():
  batch, rest = _without_three("no class")
  _, _, task = make(get_config(**{"mixing.mixup_alpha": 0.8}))
  # Not jitted: then the draw from Beta is compiled once for both sizes.
  prepared, expected = (
    task.prepare(jax.random.key(0), b) for b in (batch, rest)
  )
  kept = np.asarray(prepared["mask"]) > 0
  assert kept.sum() == BATCH - 3
  assert_trees_close(
    {k: v[kept] for k, v in prepared.items()}, expected, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize("n", [1, 4])
def test_statistics_of_micro_batches_weigh_by_their_examples(n):
  batch = make_batch()
  # Of the four micro-batches one is empty, and one has one example only.
  batch["mask"][:] = 1
  batch["mask"][0::4] = 0
  batch["mask"][1:12:4] = 0
  state, step, _ = make(get_config(accumulation_steps=n), Net(batch_norm=True))
  new, metrics = step(state, batch)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))
  assert np.isfinite(metrics["loss"])
  params = state.params["Dense_0"]
  images = (batch["image"] / 255 - 0.4) / 0.3
  hidden = images.reshape(BATCH, -1) @ params["kernel"] + params["bias"][None]
  mean = hidden[batch["mask"] > 0].mean(0)
  np.testing.assert_allclose(
    statistics(new)["mean"], 0.1 * mean, rtol=1e-4, atol=1e-5
  )
  batch["mask"][:] = 0
  new, _ = step(state, batch)
  jax.tree.map(
    np.testing.assert_array_equal, new.collections, state.collections
  )


# Compiles several training steps.
@pytest.mark.slow
def test_micro_batches_draw_different_dropout():
  model = Net(dropout=0.5)
  one_image = make_batch()
  one_image = {k: np.repeat(v[:1], BATCH, 0) for k, v in one_image.items()}
  state, _, task = make(get_config(), model)
  seen = []

  compute = task.loss

  def loss(variables, batch, key):
    seen.append(key)
    return compute(variables, batch, key)

  task.loss = loss
  spied = train_step.make_train_step(
    task,
    optax.sgd(0.1),
    lambda step: 0.1,
    get_config(),
    accumulation_steps=2,
  )
  with jax.disable_jit():
    spied(state, one_image)
  keys = {tuple(np.asarray(jax.random.key_data(k))) for k in seen[-2:]}
  assert len(keys) == 2


def test_each_step_has_its_own_randomness_and_repeats():
  state, step, _ = make(get_config(), Net(dropout=0.5))
  batch = make_batch()
  first, _ = step(state, batch)
  again, _ = step(state, batch)
  later, _ = step(state.replace(step=state.step + 1), batch)
  assert_trees_close(first.params, again.params, rtol=0)
  kernel = "Dense_1", "kernel"
  assert not np.array_equal(
    first.params[kernel[0]][kernel[1]], later.params[kernel[0]][kernel[1]]
  )


def test_ema_follows_parameters_and_statistics():
  config = get_config(**{"ema.decay": 0.75})
  state, step, _ = make(config, Net(batch_norm=True))
  new, _ = step(state, make_batch())
  expected = jax.tree.map(
    lambda old, now: 0.75 * old + 0.25 * now,
    state.variables(averaged=False),
    new.variables(averaged=False),
  )
  assert set(new.ema) == {"params", "batch_stats"}
  assert_trees_close(new.ema, expected, rtol=1e-5, atol=1e-6)
  assert new.variables() is new.ema
  assert new.variables(averaged=False)["params"] is new.params


@pytest.mark.parametrize(("t", "decay"), [(0, 0.1), (8, 0.5), (10**6, 0.9)])
def test_ema_warmup_is_tensorflows(t, decay):
  out = train_state.update_ema(
    jnp.float32(0), jnp.float32(1), 0.9, jnp.int32(t), warmup=True
  )
  np.testing.assert_allclose(out, 1 - decay, rtol=1e-5)


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_moves_after_every_so_many_updates(warmup):
  every, decay, rng = 3, 0.75, np.random.default_rng(0)
  values = rng.standard_normal((10, 2)).astype(np.float32)
  move = jax.jit(
    lambda ema, new, step: train_state.update_ema(
      ema, new, decay, step, warmup=warmup, every=every
    )
  )
  ema = expected = np.ones(2, np.float32)
  for step, new in enumerate(values):
    ema = move(ema, new, jnp.int32(step))
    # The first move is after three updates, and is the first of the warm-up.
    if step in (2, 5, 8):
      t = (step - 2) / 3
      keep = min(decay, (1 + t) / (10 + t)) if warmup else decay
      expected = keep * expected + (1 - keep) * new
    np.testing.assert_allclose(ema, expected, rtol=1e-6)


def test_ema_counts_updates_and_not_micro_batches():
  config = get_config(**{"ema.decay": 0.75, "ema.every": 2})
  state, step, _ = make(config, accumulation_steps=2)
  before = state.ema
  state, _ = step(state, make_batch(0))
  assert_trees_close(state.ema, before, rtol=0)
  state, _ = step(state, make_batch(1))
  expected = jax.tree.map(
    lambda old, now: 0.75 * old + 0.25 * now,
    before["params"],
    state.params,
  )
  assert_trees_close(state.ema["params"], expected, rtol=1e-5, atol=1e-6)


@functools.cache
def _on_one_device(accumulation_steps):
  config = get_config(**{"mixing.mixup_alpha": 0.5})
  state, step, _ = make(
    config, Net(batch_norm=True), accumulation_steps=accumulation_steps
  )
  return state, step, step(state, make_batch())


# Compiles several training steps.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("sizes", "n"),
  [
    ((1, 4, 1, 1, 1), 1),
    ((2, 2, 1, 1, 1), 2),
    ((1, 1, 4, 1, 1), 1),
    ((1, 2, 1, 1, 2), 2),
  ],
)
def test_a_sharded_step_equals_the_step_on_one_device(sizes, n):
  batch = make_batch()
  state, step, (expected, expected_metrics) = _on_one_device(n)
  mesh = sharding.create_mesh(
    ml_collections.ConfigDict(dict(zip(sharding.AXES, sizes, strict=True)))
  )
  shardings = placement.state_shardings(
    state, mesh, [("Dense_0/kernel", (None, "model"))]
  )
  rows = sharding.batch_sharding(mesh)
  with jax.set_mesh(mesh):
    new, metrics = jax.jit(
      step, in_shardings=(shardings, rows), out_shardings=(shardings, None)
    )(jax.device_put(state, shardings), jax.device_put(batch, rows))
  assert_trees_close(metrics, expected_metrics, rtol=1e-4)
  assert_trees_close(new.params, expected.params, rtol=1e-4, atol=1e-6)
  assert_trees_close(
    new.collections, expected.collections, rtol=1e-4, atol=1e-6
  )


def test_accumulation_that_does_not_fit_is_an_error():
  mesh = sharding.create_mesh(
    ml_collections.ConfigDict(dict(data=4, fsdp=1, model=1))
  )
  train_step.check_accumulation(32, 4, mesh)
  with pytest.raises(ValueError, match=r"accumulation_steps=3.*multiple of 12"):
    train_step.check_accumulation(32, 3, mesh)
  with pytest.raises(ValueError, match=r"accumulation_steps=0"):
    train_step.check_accumulation(32, 0, mesh)
