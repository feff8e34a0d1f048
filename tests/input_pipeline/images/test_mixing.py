import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from input_pipeline.images import mixing

BATCH, HEIGHT, WIDTH, CLASSES = 8, 12, 10, 5
METHODS = [
  dict(mixup_alpha=0.8),
  dict(cutmix_alpha=1.0),
  dict(mixup_alpha=0.8, cutmix_alpha=1.0),
]


@functools.partial(jax.jit, static_argnames=("mixup_alpha", "cutmix_alpha"))
def mix(key, *batch, **options):
  return mixing.mix(key, *batch, **options)


def get_batch():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)
  labels = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, BATCH)]
  return images, labels, np.ones(BATCH, np.float32)


def get_weights(images, mixed):
  """Solves mixed = w * x + (1 - w) * partner for w: [batch, height, width]."""
  partner = np.roll(images, 1, axis=0)
  return ((mixed - partner) / (images - partner)).mean(axis=-1)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_one_convex_combination(seed):
  images, labels, mask = get_batch()
  key = jax.random.key(seed)
  mixed, targets = mix(key, images, labels, mask, mixup_alpha=0.8)
  weights = get_weights(images, np.asarray(mixed))
  weight = weights.mean()
  assert 0 < weight < 1
  np.testing.assert_allclose(weights, weight, atol=1e-3)
  # Brute force, example by example.
  for i in range(BATCH):
    expected = weight * labels[i] + (1 - weight) * labels[i - 1]
    np.testing.assert_allclose(targets[i], expected, atol=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_a_box_and_weighs_labels_by_its_area(seed):
  images, labels, mask = get_batch()
  key = jax.random.key(seed)
  mixed, targets = mix(key, images, labels, mask, cutmix_alpha=1.0)
  mixed = np.asarray(mixed)
  pasted = np.all(mixed[0] != images[0], axis=-1)
  top, left, bottom, right = 0, 0, 0, 0
  if pasted.any():
    rows, columns = np.nonzero(pasted)
    top, bottom = rows.min(), rows.max() + 1
    left, right = columns.min(), columns.max() + 1
  area = (bottom - top) * (right - left) / (HEIGHT * WIDTH)
  for i in range(BATCH):
    expected = images[i].copy()
    box = (slice(top, bottom), slice(left, right))
    expected[box] = images[i - 1][box]
    np.testing.assert_array_equal(mixed[i], expected)
    label = (1 - area) * labels[i] + area * labels[i - 1]
    np.testing.assert_allclose(targets[i], label, atol=1e-6)


def test_cutmix_box_has_the_share_of_one_minus_lambda():
  # E[1 - lambda] is 1/2 for alpha 1; clipping takes some of it away: of an
  # interval of share s, s/4 of it on average, so that (1 - s/4)^2 s^2 is left.
  images = jnp.zeros((2, 64, 64, 1))

  def get_area(key):
    labels = jnp.eye(2)
    _, targets = mixing.mix(key, images, labels, jnp.ones(2), cutmix_alpha=1.0)
    return targets[0, 1]

  areas = jax.jit(jax.vmap(get_area))(jax.random.split(jax.random.key(0), 4000))
  share = np.sqrt((np.arange(1000) + 0.5) / 1000)
  expected = np.mean(((1 - share / 4) * share) ** 2)
  assert float(areas.mean()) == pytest.approx(expected, abs=0.02)


def test_mixup_lambda_has_the_beta_distribution():
  images = jnp.zeros((2, 1, 1, 1)).at[0].set(1.0)
  labels = jnp.eye(2)

  def get_lambda(key):
    mixed, _ = mixing.mix(key, images, labels, jnp.ones(2), mixup_alpha=0.2)
    return mixed[0, 0, 0, 0]

  keys = jax.random.split(jax.random.key(0), 4000)
  lambdas = jax.jit(jax.vmap(get_lambda))(keys)
  assert float(lambdas.mean()) == pytest.approx(0.5, abs=0.03)
  # Variance of Beta(a, a): 1 / (4 (2 a + 1)).
  assert float(lambdas.var()) == pytest.approx(1 / 5.6, abs=0.01)


def test_switch_takes_each_method_as_often_as_asked():
  images, labels, mask = (x[:2] for x in get_batch())

  def is_mixup(key):
    mixed, _ = mixing.mix(
      key,
      images,
      labels,
      mask,
      mixup_alpha=1.0,
      cutmix_alpha=1.0,
      switch_probability=0.25,
    )
    partner = jnp.roll(images, 1, axis=0)
    return jnp.all((mixed != images) & (mixed != partner))

  keys = jax.random.split(jax.random.key(1), 300)
  share = float(jax.jit(jax.vmap(is_mixup))(keys).mean())
  assert share == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("options", METHODS)
def test_label_mass_is_one(options):
  images, labels, mask = get_batch()
  for seed in range(10):
    key = jax.random.key(seed)
    _, targets = mix(key, images, labels, mask, **options)
    np.testing.assert_allclose(targets.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("options", METHODS)
def test_sharded_batch_gives_the_same(options):
  batch = get_batch()
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  sharded = jax.device_put(batch, rows)
  expected = mix(jax.random.key(3), *batch, **options)
  with jax.set_mesh(mesh):
    actual = mix(jax.random.key(3), *sharded, **options)
  for a, b in zip(actual, expected, strict=True):
    assert len(a.sharding.device_set) == 4
    np.testing.assert_allclose(a, b, atol=1e-6)
  # A whole batch on each device would not fit it, also where examples miss.
  with jax.set_mesh(mesh):
    text = mix.lower(jax.random.key(3), *sharded, **options).compile().as_text()
  assert "collective-permute" in text
  assert f"f32[{BATCH},{HEIGHT}" not in text


@pytest.mark.parametrize("missing", [[2], [0], [0, 7], [1, 2, 3, 4, 5, 6]])
def test_missing_examples_are_passed_over(missing):
  images, labels, mask = get_batch()
  mask[missing] = 0
  kept = mask > 0
  key, options = jax.random.key(0), METHODS[0]
  expected = mix(key, images[kept], labels[kept], mask[kept], **options)
  images[~kept], labels[~kept] = np.nan, np.nan
  mixed = mix(key, images, labels, mask, **options)
  for a, b in zip(mixed, expected, strict=True):
    np.testing.assert_array_equal(a[kept], b)


def test_off_changes_nothing():
  batch = get_batch()
  assert mixing.mix(jax.random.key(0), *batch) == batch[:2]


def test_keeps_bfloat16():
  images, labels, mask = get_batch()
  mixed, targets = mixing.mix(
    jax.random.key(0),
    jnp.asarray(images, jnp.bfloat16),
    labels,
    mask,
    mixup_alpha=1.0,
  )
  assert mixed.dtype == jnp.bfloat16
  assert targets.dtype == jnp.float32


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(images=np.zeros((8, 4, 4, 3), np.uint8)), "images are uint8"),
    (dict(images=np.zeros((8, 4, 3), np.float32)), "images are float32"),
    (dict(labels=np.zeros(8, np.int32)), "labels are int32"),
    (dict(mask=np.ones(7, np.float32)), "8, 8 and 7"),
    (dict(mixup_alpha=-1.0), "mixup_alpha is -1"),
    (dict(cutmix_alpha=-1.0), "cutmix_alpha is -1"),
    (dict(mixup_alpha=float("nan")), "mixup_alpha is nan"),
    (dict(switch_probability=2.0), "switch_probability is 2"),
  ],
)
def test_faults(change, message):
  images, labels, mask = get_batch()
  arguments = dict(images=images, labels=labels, mask=mask) | change
  with pytest.raises(ValueError, match=message):
    mixing.mix(jax.random.key(0), **arguments)
