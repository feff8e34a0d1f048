"""ResNet-RS and plain ResNets: counts, and what the fields do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import layers, resnet, resnet_rs_scaling
from tests import parity_helper
from tests.models import counting

# Of the networks with 1000 classes: parameters and statistics.
_RS = {
  50: (35_691_912, 53_376),
  101: (63_618_696, 105_600),
  152: (86_621_576, 151_680),
  200: (93_209_992, 176_256),
  270: (129_861_448, 243_072),
  350: (163_956_168, 312_192),
  420: (191_891_656, 370_560),
}
_SIZES = {
  50: (160,),
  101: (160, 192),
  152: (192, 224, 256),
  200: (256,),
  270: (256,),
  350: (256, 320),
  420: (320,),
}


def _counts():
  counts = {
    "resnet18": (11_689_512, 9_600),
    "resnet26": (15_995_176, 30_848),
    "resnet34": (21_797_672, 17_024),
    "resnet50": (25_557_032, 53_120),
    "resnet101": (44_549_160, 105_344),
    "resnet152": (60_192_808, 151_424),
  }
  for depth, (parameters, statistics) in _RS.items():
    counts[f"resnetrs{depth}"] = parameters, statistics
    for size in _SIZES[depth]:
      counts[f"resnetrs_{depth}_{size}"] = parameters, statistics
      if depth != 420:
        name = f"resnetrs_{depth}_swish_{size}"
        counts[name] = parameters + 2049, statistics
  return counts


# Name: parameters and statistics as published, with 1000 classes, the Model
# Garden's swish models with 1001.
COUNTS: dict[str, tuple[int, int]] = _counts()

SMALL = {
  "stem_widths": (8, 8, 16),
  "widths": (8, 16),
  "depths": (2, 1),
  "num_classes": 5,
}


def small_model(**overrides):
  return resnet.ResNet(**{**SMALL, **overrides})


def _images(size=16, batch=2):
  return jnp.asarray(parity_helper.random_images(batch, size))


# One name for each network; the test below is of the others.
@pytest.mark.parametrize(
  "name",
  [
    *(n for n in COUNTS if not n.startswith("resnetrs_")),
    "resnetrs_50_swish_160",
  ],
)
def test_counts(name):
  # Two are counted with all their blocks, and show that the others can be
  # counted by kind.
  count = counting.count_by_kind
  if name in ("resnet34", "resnetrs50"):
    count = counting.count
  assert count(models.create(name), 32) == COUNTS[name]


def test_variants_of_a_depth_differ_in_rates_only():
  assert set(COUNTS) == set(resnet.VARIANTS)
  for name in resnet.VARIANTS:
    if not name.startswith("resnetrs_"):
      continue
    _, depth, *_, size = name.split("_")
    model, timm = models.create(name), models.create(f"resnetrs{depth}")
    assert models.image_size(name) == int(size)
    for field in ("depths", "widths", "stem_widths", "stem", "squeeze_ratio"):
      assert getattr(model, field) == getattr(timm, field), (name, field)
    assert model.num_classes == (1001 if "swish" in name else 1000)


def _closed_form(depths, classes=1000):
  """Parameters and statistics by the sum over a network's layers."""
  total = 864 + 9216 + 18432 + 36864
  norms, inputs = 32 + 32 + 64 + 64, 64
  for f, depth in zip((64, 128, 256, 512), depths, strict=True):
    o = 4 * f
    for i in range(depth):
      total += inputs * f + 9 * f * f + f * o + o * f + f + f * o + o
      norms += f + f + o
      if i == 0:
        total += inputs * o
        norms += o
      inputs = o
  return total + 2 * norms + 2048 * classes + classes, 2 * norms


@pytest.mark.parametrize("depth", [26, 300, 400])
def test_depths_of_the_scaling_study(depth):
  depths = resnet_rs_scaling.DEPTHS[depth]
  assert 3 * sum(depths) + 2 == {26: 26, 300: 296, 400: 398}[depth]
  model = resnet.ResNet(depths=depths)
  assert counting.count_by_kind(model, 32) == _closed_form(depths)
  assert _closed_form((3, 4, 6, 3)) == COUNTS["resnetrs50"]


# Traces or compiles whole networks.
@pytest.mark.slow
def test_each_block_starts_as_its_shortcut():
  model = small_model()
  images = _images()
  variables = jax.jit(model.init)(jax.random.key(0), images)

  @jax.jit
  def run(variables):
    return model.apply(variables, images, mutable=["intermediates"])[1]

  params = variables["params"]
  for block in ("block_0", "block_1"):
    scale = params["stage_0"][block]["conv_2"]["norm"]["scale"]
    assert not scale.any()
    assert (params["stage_0"][block]["conv_1"]["norm"]["scale"] == 1).all()
  states = run(variables)["intermediates"]
  before = states["stage_0"]["block_0"]["hidden_state"]
  after = states["stage_0"]["block_1"]["hidden_state"]
  np.testing.assert_allclose(after, nn.relu(before), atol=1e-6)
  assert before.std() > 0.01
  kept = jax.jit(small_model(zero_last_scale=False).init)(
    jax.random.key(0), images
  )["params"]["stage_0"]["block_0"]["conv_2"]["norm"]["scale"]
  assert (kept == 1).all()


# Traces or compiles whole networks.
@pytest.mark.slow
def test_initial_values():
  model = small_model(widths=(32, 64), num_classes=300)
  params = jax.jit(model.init)(jax.random.key(0), _images())["params"]
  for path, value in traverse_util.flatten_dict(params).items():
    if path[-1] == "bias":
      assert not value.any()
    elif path[:2] == ("head", "logits"):
      np.testing.assert_allclose(value.std(), 0.01, rtol=0.05)
    elif path[-1] == "kernel" and value.size > 2000:
      fan_in = np.prod(value.shape[:-1])
      np.testing.assert_allclose(value.std(), fan_in**-0.5, rtol=0.1)
      # Truncated at two deviations of the normal before truncation.
      assert jnp.abs(value).max() < 2.3 * fan_in**-0.5


def _norms_and_rates(model):
  """The modules that an initialisation meets, in their order."""
  norms, rates = [], []

  def record(next_call, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.BatchNorm):
      norms.append((module.epsilon, module.momentum))
    if isinstance(module, layers.StochasticDepth):
      rates.append(round(module.rate, 6))
    return next_call(*args, **kwargs)

  with nn.intercept_methods(record):
    jax.eval_shape(model.init, jax.random.key(0), _images(32, 1))
  return set(norms), rates


def test_constants_of_the_norms():
  assert _norms_and_rates(small_model())[0] == {(1e-5, 0.0)}
  plain = models.create("resnet18", widths=(8, 8), depths=(1, 1))
  assert _norms_and_rates(plain)[0] == {(1e-5, 0.9)}


def test_stochastic_depth_by_stage():
  options = {"depths": (2, 1, 2, 1), "widths": (8, 8, 8, 8)}
  model = small_model(stochastic_depth_rate=0.1, **options)
  rates = _norms_and_rates(model)[1]
  assert rates == [0.04, 0.04, 0.06, 0.08, 0.08, 0.1]
  published = models.create("resnetrs_200_256").stochastic_depth_rates
  assert [{round(r, 6) for r in stage} for stage in published] == [
    {0.04},
    {0.06},
    {0.08},
    {0.1},
  ]


def test_stochastic_depth_by_block():
  options = {"depths": (2, 1, 2, 1), "widths": (8, 8, 8, 8)}
  model = small_model(
    stochastic_depth_rate=0.1, stochastic_depth_rule="linear", **options
  )
  rates = _norms_and_rates(model)[1]
  assert rates == [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
  assert models.create("resnetrs50").stochastic_depth_rule == "linear"


@pytest.mark.parametrize("stem", resnet.CHOICES["stem"])
def test_stems(stem):
  model = small_model(stem=stem)
  variables = jax.eval_shape(model.init, jax.random.key(0), _images())
  params = variables["params"]
  assert ("stem_pool" in params) == (stem == "deep")
  kernels = {
    k: v["conv"]["kernel"].shape for k, v in params["stem_conv"].items()
  }
  if stem == "conv7":
    assert kernels == {"conv_0": (7, 7, 3, 16)}
  else:
    assert kernels == {
      "conv_0": (3, 3, 3, 8),
      "conv_1": (3, 3, 8, 8),
      "conv_2": (3, 3, 8, 16),
    }
  maps = jax.eval_shape(
    lambda v, x: model.apply(v, x, method="features"), variables, _images()
  )
  assert [m.shape[1:] for m in maps] == [(8, 8, 16), (4, 4, 32), (2, 2, 64)]


@pytest.mark.parametrize("size", [1, 5, 33, 47])
def test_any_size_gives_a_pyramid(size):
  # The first block of a stage alone has a stride.
  model = models.create("resnetrs50", num_classes=0, depths=(1, 1, 1, 1))
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  maps, pooled = jax.eval_shape(
    lambda v, x: (model.apply(v, x, method="features"), model.apply(v, x)),
    variables,
    image,
  )
  assert [m.shape[1] for m in maps] == [-(-size // 2**i) for i in range(1, 6)]
  assert [m.shape[3] for m in maps] == [64, 256, 512, 1024, 2048]
  assert pooled.shape == (1, 2048)
  assert "head" not in variables["params"]


@pytest.mark.parametrize(("padding", "rows"), [("symmetric", 4), ("same", 3)])
def test_padding(padding, rows):
  """A pixel in row 3, and which rows of the 7 x 7 convolution see it.

  Row i sees rows 2i - 3 to 2i + 3, or 2i - 2 to 2i + 4 where the odd pixel of
  the border goes after.
  """
  model = small_model(stem="conv7", padding=padding)
  image = jnp.zeros((1, 8, 8, 1)).at[0, 3, 3].set(1.0)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  ones = jax.tree.map(lambda s: jnp.ones(s.shape), variables)
  # Batch norm subtracts its mean of 1 and adds its bias of 1.
  seen = jax.jit(lambda v, x: model.apply(v, x, method="features")[0])(
    ones, image
  )
  np.testing.assert_array_equal(seen[0, :, 0, 0] > 0.5, np.arange(4) < rows)


def test_average_pool_at_odd_borders():
  x = jnp.arange(2 * 3 * 5 * 2.0).reshape(2, 3, 5, 2)
  pooled = layers.average_pool(x)
  assert pooled.shape == (2, 2, 3, 2)
  np.testing.assert_allclose(pooled[1, 0, 1], x[1, :2, 2:4].mean((0, 1)))
  np.testing.assert_allclose(pooled[1, 1, 1], x[1, 2, 2:4].mean(0))
  np.testing.assert_allclose(pooled[1, 1, 2], x[1, 2, 4])


def _loss_and_gradient(model, variables, images):
  def loss(params):
    logits, _ = model.apply(
      {**variables, "params": params}, images, train=True, mutable="batch_stats"
    )
    return jnp.sum(jnp.sin(10 * logits))

  return jax.jit(jax.value_and_grad(loss))(variables["params"])


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.smoke
def test_remat_changes_no_value_and_every_parameter_gets_a_gradient():
  images = _images(32, 4)
  plain, remat = small_model(), small_model(remat=True)
  variables = parity_helper.random_variables(plain, 0)
  results = [_loss_and_gradient(m, variables, images) for m in (plain, remat)]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    *results,
  )
  for path, value in jax.tree_util.tree_leaves_with_path(results[0][1]):
    assert jnp.isfinite(value).all(), path
    assert jnp.abs(value).max() > 0, path


def test_statistics_are_those_of_the_last_batch():
  model, images = small_model(), _images()
  variables = parity_helper.random_variables(model, 0)
  _, updates = jax.jit(
    lambda v, x: model.apply(v, x, train=True, mutable="batch_stats")
  )(variables, images)
  kernel = variables["params"]["stem_conv"]["conv_0"]["conv"]["kernel"]
  y = jax.lax.conv_general_dilated(
    images,
    kernel,
    (2, 2),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  norm = updates["batch_stats"]["stem_conv"]["conv_0"]["norm"]
  np.testing.assert_allclose(norm["mean"], y.mean((0, 1, 2)), atol=1e-5)
  np.testing.assert_allclose(norm["var"], y.var((0, 1, 2)), atol=1e-4)


def test_dropout_acts_on_the_features_in_training_only():
  model = small_model(dropout_rate=0.5)
  variables = parity_helper.random_variables(model, 0)
  maps = [jnp.ones((500, 2, 2, 64))]
  classify = lambda **options: model.apply(
    variables, maps, method="classify", **options
  )
  exact = classify()
  dropped = classify(train=True, rngs={"dropout": jax.random.key(0)})
  assert jnp.abs(dropped - exact).max() > 0.1
  # Five deviations of the mean of 500 draws of 64 halves.
  kernel = variables["params"]["head"]["logits"]["kernel"]
  deviation = jnp.sqrt((kernel**2).sum(0) / 500)
  assert (jnp.abs(dropped.mean(0) - exact[0]) < 5 * deviation).all()


def test_bfloat16_keeps_statistics_and_logits_in_float32():
  half, images = small_model(dtype="bfloat16"), _images()
  variables = parity_helper.random_variables(half, 0)
  logits, updates = jax.eval_shape(
    lambda v, x: half.apply(v, x, train=True, mutable="batch_stats"),
    variables,
    images,
  )
  assert logits.dtype == jnp.float32
  assert {s.dtype for s in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
  maps = jax.eval_shape(
    lambda v, x: half.apply(v, x, method="features"), variables, images
  )
  assert {m.dtype for m in maps} == {jnp.dtype("bfloat16")}


def test_errors_say_what_would_fit():
  def init(x, **fields):
    jax.eval_shape(small_model(**fields).init, jax.random.key(0), x)

  image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  for field in resnet.CHOICES:
    with pytest.raises(ValueError, match=f"{field} is 'odd'; it must be one"):
      init(image, **{field: "odd"})
  with pytest.raises(ValueError, match=r"depths is \(1,\)"):
    init(image, depths=(1,))
  with pytest.raises(ValueError, match=r"stem_widths is \(8,\)"):
    init(image, stem_widths=(8,))
  with pytest.raises(ValueError, match="squeeze_ratio is -1"):
    init(image, squeeze_ratio=-1)
  with pytest.raises(ValueError, match="floating point"):
    init(jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.uint8))
  with pytest.raises(ValueError, match=r"shape \(16, 16, 3\)"):
    init(jax.ShapeDtypeStruct((16, 16, 3), jnp.float32))
  with pytest.raises(ValueError, match=r"shape \(1, 0, 16, 3\)"):
    init(jax.ShapeDtypeStruct((1, 0, 16, 3), jnp.float32))
