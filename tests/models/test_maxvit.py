"""Counts to the integer, behaviour of the fields, gradients, many devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import models
from models import layers, maxvit
from tests.models import counting, small

# Trainable parameters with 1000 classes: tables of 13 x 13 offsets (official
# models at any resolution), 23 x 23 and 31 x 31 (timm's at 384 and 512), with
# 21843 classes at 224; then batch statistics.
_SIZES = {
  "tiny": (30_916_528, 30_977_008, 31_049_584, 41_608_987, 47_616),
  "small": (68_927_956, 69_018_676, 69_127_540, 84_956_223, 71_296),
  "base": (119_467_708, 119_653_468, 119_876_380, 135_495_975, 147_328),
  "large": (211_785_560, 212_033_240, 212_330_456, 233_149_635, 196_608),
  "xlarge": (474_951_952, 475_323_472, 475_769_296, 506_987_643, 294_912),
}


def _expected_counts():
  for size, (table7, table12, table16, classes21k, stats) in _SIZES.items():
    for resolution in (224, 384, 512):
      yield f"maxvit_{size}_{resolution}", 1000, table7, stats
    yield f"maxvit_{size}_tf_224", 1000, table7, stats
    yield f"maxvit_{size}_tf_384", 1000, table12, stats
    yield f"maxvit_{size}_tf_512", 1000, table16, stats
    yield f"maxvit_{size}_224", 21843, classes21k, stats


COUNTS = {
  name: numbers
  for name, classes, *numbers in _expected_counts()
  if classes == 1000
}


def _by_structure():
  """Of each size the first, and all others of the least."""
  for name, classes, *numbers in _expected_counts():
    first = name == f"maxvit_{name.split('_')[1]}_224" and classes == 1000
    if "tiny" in name or first:
      yield name, classes, *numbers


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "classes", "parameters", "statistics"), list(_by_structure())
)
def test_counts(name, classes, parameters, statistics):
  model = models.create(name, num_classes=classes)
  size = model.size_multiple
  assert str(size) in name
  # One is counted with all its blocks, and shows that the others can be
  # counted by kind.
  count = counting.count_by_kind
  if name == "maxvit_tiny_tf_384":
    count = counting.count
  assert count(model, size) == (parameters, statistics)


def test_counts_of_the_sizes_differ_by_tables_and_classes():
  """So the numbers of the models that are not traced follow from theirs."""
  for name, classes, parameters, statistics in _expected_counts():
    size = name.split("_")[1]
    model = models.create(name, num_classes=classes)
    traced = models.create(f"maxvit_{size}_224")
    window = model.bias_table_window or model.window_size
    assert model == traced.clone(
      num_classes=classes,
      window_size=model.window_size,
      bias_table_window=model.bias_table_window,
    )
    # Two tables a block, of a row for each head.
    heads = sum(
      2 * depth * width // model.head_dim
      for depth, width in zip(model.depths, model.widths, strict=True)
    )
    more = heads * ((2 * window - 1) ** 2 - 13**2)
    more += (classes - 1000) * (model.widths[-1] + 1)
    assert (parameters - more, statistics) == (_SIZES[size][0], _SIZES[size][4])


def test_no_variant_is_uncounted():
  assert {name for name, *_ in _expected_counts()} == set(maxvit.VARIANTS)


def test_constants_of_the_norms():
  seen = []

  def record(next_call, args, kwargs, context):
    seen.append(context.module)
    return next_call(*args, **kwargs)

  model = small.model()
  with nn.intercept_methods(record):
    jax.eval_shape(model.init, jax.random.key(0), small.images())
  batch_norms = [m for m in seen if isinstance(m, nn.BatchNorm)]
  layer_norms = [m for m in seen if isinstance(m, nn.LayerNorm)]
  assert {(m.epsilon, m.momentum) for m in batch_norms} == {(1e-3, 0.99)}
  assert {m.epsilon for m in layer_norms} == {1e-5}
  assert len(batch_norms) == 1 + 3 * 3
  assert len(layer_norms) == 1 + 3 * 4


# Traces or compiles whole networks.
@pytest.mark.slow
def test_initial_values():
  model = small.model(widths=(32, 64))
  params = jax.jit(model.init)(jax.random.key(0), small.images())["params"]
  flat = jax.tree_util.tree_leaves_with_path(params)
  for path, value in flat:
    leaf = path[-1].key
    if leaf == "bias":
      assert not value.any()
    elif leaf == "scale":
      assert (value == 1).all()
    elif value.size > 1000:
      np.testing.assert_allclose(value.std(), 0.02, rtol=0.1)
      # Not truncated: a truncated normal stops at two deviations.
      assert jnp.abs(value).max() > 0.05


def test_stochastic_depth_grows_from_zero_to_below_the_rate():
  rates = {}

  def record(next_call, args, kwargs, context):
    if isinstance(context.module, layers.StochasticDepth):
      block = context.module.path[:2]
      rates.setdefault(block, set()).add(round(context.module.rate, 6))
    return next_call(*args, **kwargs)

  model = small.model(stochastic_depth_rate=0.3)
  with nn.intercept_methods(record):
    jax.eval_shape(model.init, jax.random.key(0), small.images())
  assert [r for _, r in sorted(rates.items())] == [{0.0}, {0.1}, {0.2}]


# Traces or compiles whole networks.
@pytest.mark.slow
def test_feature_pyramid():
  model = small.model()
  images = small.images(size=32, channels=2)
  variables = small.variables(model, channels=2)
  maps = small.apply(model, variables, images, method="features")
  assert [m.shape for m in maps] == [
    (2, 16, 16, 8),
    (2, 8, 8, 16),
    (2, 4, 4, 32),
  ]
  headless = small.model(num_classes=0)
  pooled = small.apply(headless, variables, maps, method="classify")
  assert pooled.shape == (2, 32)


@pytest.mark.parametrize("window", [1, 3])
def test_published_resolutions_are_what_the_windows_need(window):
  model = small.model(window_size=window)
  assert model.size_multiple == 8 * window
  assert small.model(layout=("mbconv",), window_size=7).size_multiple == 8


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.smoke
def test_remat_changes_no_value_and_every_parameter_has_a_gradient():
  images = small.images()
  plain, remat = small.model(), small.model(remat=True)
  variables = small.variables(plain)
  results = []
  for model in (plain, remat):

    def loss(params, model=model):
      logits, updates = model.apply(
        {**variables, "params": params},
        images,
        train=True,
        mutable="batch_stats",
      )
      return jnp.sum(jnp.sin(10 * logits)), updates

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    results.append(step(variables["params"]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    *results,
  )
  _, gradients = results[0]
  for path, value in jax.tree_util.tree_leaves_with_path(gradients):
    assert jnp.isfinite(value).all(), path
    assert jnp.abs(value).max() > 0, path


# Traces or compiles whole networks.
@pytest.mark.slow
def test_bfloat16_keeps_statistics_and_logits_in_float32():
  images = small.images()
  exact, half = small.model(), small.model(dtype="bfloat16")
  variables = small.variables(exact)
  options = {"train": True, "mutable": "batch_stats"}
  logits, updates = small.apply(half, variables, images, **options)
  expected, _ = small.apply(exact, variables, images, **options)
  assert logits.dtype == jnp.float32
  assert {s.dtype for s in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
  maps = jax.eval_shape(
    lambda v, x: half.apply(v, x, method="features"), variables, images
  )
  assert {m.dtype for m in maps} == {jnp.dtype("bfloat16")}
  error = jnp.abs(logits - expected).max()
  assert 0 < error < 0.1 * jnp.abs(expected).max()


LAYOUTS = {
  "grid before block": ("mbconv", "grid_attention", "block_attention"),
  "block twice": ("mbconv", "block_attention", "block_attention"),
  "no mbconv": ("block_attention", "grid_attention"),
  "attention first": ("block_attention", "grid_attention", "mbconv"),
  "by stage": (("mbconv",), ("mbconv", "block_attention")),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout):
  model = small.model(layout=layout)
  images = small.images()
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  maps = jax.eval_shape(
    lambda v, x: model.apply(v, x, method="features"), variables, images
  )
  assert [m.shape[1:] for m in maps] == [(8, 8, 8), (4, 4, 16), (2, 2, 32)]
  blocks = variables["params"]["stage_1"]["block_0"]
  wanted = layout if isinstance(layout[0], str) else layout[1]
  mixers = [k for k in blocks if k not in ("mbconv", "shortcut")]
  assert len(mixers) == len([k for k in wanted if k != "mbconv"])


def test_order_of_the_layers_matters():
  images = small.images(size=32)
  model = small.model()
  variables = small.variables(model)
  swapped = small.model(layout=LAYOUTS["grid before block"])
  logits = [small.apply(m, variables, images) for m in (model, swapped)]
  assert jnp.abs(logits[0] - logits[1]).max() > 1e-2


# Traces or compiles whole networks.
@pytest.mark.slow
def test_overfits_random_images():
  model = small.model(
    stem_widths=(16, 16), widths=(16, 32), depths=(1, 1), num_classes=4
  )
  images = small.images(batch=32)
  labels = jnp.arange(32) % 4
  variables = jax.jit(model.init)(jax.random.key(0), images)
  optimizer = optax.adam(3e-3)

  def loss(params, statistics):
    logits, updates = model.apply(
      {"params": params, "batch_stats": statistics},
      images,
      train=True,
      mutable="batch_stats",
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), updates["batch_stats"]

  @jax.jit
  def train(params, statistics):
    def step(_, carry):
      params, statistics, state, _ = carry
      (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(
        params, statistics
      )
      updates, state = optimizer.update(grads, state)
      return optax.apply_updates(params, updates), statistics, state, value

    carry = (params, statistics, optimizer.init(params), jnp.zeros(()))
    return jax.lax.fori_loop(0, 60, step, carry)[-1]

  assert train(variables["params"], variables["batch_stats"]) < 0.1


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.smoke
def test_batch_statistics_are_those_of_the_global_batch():
  model, images = small.model(), small.images(batch=8)
  # Devices see quite different images.
  images *= jnp.arange(1.0, 9.0)[:, None, None, None]
  variables = small.variables(model)

  @jax.jit
  def step(variables, images):
    return model.apply(variables, images, train=True, mutable="batch_stats")

  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  spread = NamedSharding(mesh, PartitionSpec("data"))
  everywhere = NamedSharding(mesh, PartitionSpec())
  sharded = step(
    jax.device_put(variables, everywhere), jax.device_put(images, spread)
  )
  assert len(sharded[0].sharding.device_set) == 4
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    sharded,
    step(variables, images),
  )


def test_errors_say_what_would_fit():
  key = jax.random.key(0)
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  init = lambda model, x: jax.eval_shape(model.init, key, x)
  tiny = models.create("maxvit_tiny_224")
  with pytest.raises(ValueError, match=r"256 x 224.*multiples of 224"):
    init(tiny, shape(1, 256, 224, 3))
  with pytest.raises(ValueError, match="floating point"):
    init(tiny, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.uint8))
  with pytest.raises(ValueError, match=r"shape \(224, 224, 3\)"):
    init(tiny, shape(224, 224, 3))
  images = shape(1, 16, 16, 3)
  with pytest.raises(ValueError, match="depths is"):
    init(small.model(depths=(1, 1, 1)), images)
  with pytest.raises(ValueError, match="layout has 1 entries"):
    init(small.model(layout=(("mbconv",),)), images)
  with pytest.raises(ValueError, match=r"head_dim is 7.*width 16"):
    init(small.model(head_dim=7), images)
  with pytest.raises(ValueError, match="did you mean grid_attention"):
    init(small.model(layout=("mbconv", "grid_atention")), images)
