"""MobileNets: counts, equality with timm, places of gates, sizes, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import layers, pretrained, weight_maps
from models.mobilenet import MobileNet
from tests import parity_helper
from tests.models import counting
from tools import work

# With 1000 classes: parameters and statistics; timm's, where it has the name.
COUNTS = {
  "mobilenetv1_050": (1_331_592, 10_944),
  "mobilenetv1_075": (2_585_560, 16_416),
  "mobilenetv1_100": (4_231_976, 21_888),
  "mobilenetv2_050": (1_968_680, 18_544),
  "mobilenetv2_100": (3_504_872, 34_112),
  "mobilenetv2_140": (6_108_776, 47_936),
}
V1_SMALL = {"stages": ((0, 16, 1, 1), (0, 16, 2, 2)), "final_width": 0}
SMALL = {
  "stages": ((1, 8, 1, 1), (3, 16, 2, 2), (2, 16, 1, 1)),
  "stem_width": 8,
  "final_width": 24,
  "num_classes": 5,
}


def _small(**fields):
  return MobileNet(**{**SMALL, **fields})


def _shapes(model, size=32):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
  assert counting.count(models.create(name), 32) == COUNTS[name]


@pytest.mark.parity
def test_counts_are_those_of_timm():
  _, timm = parity_helper.import_timm()
  torch = parity_helper.import_torch()
  compared = []
  for name, (parameters, statistics) in COUNTS.items():
    if not timm.is_model(name):
      continue
    with torch.device("meta"):
      theirs = timm.create_model(name)
    assert sum(p.numel() for p in theirs.parameters()) == parameters
    buffers = (b.numel() for b in theirs.buffers() if b.ndim)
    assert sum(buffers) == statistics
    compared.append(name)
  assert len(compared) >= 4


def test_counts_of_ela():
  """7104 channels are gated: those of the blocks that expand."""
  base, _ = COUNTS["mobilenetv2_100"]

  def count(variant):
    options = {"gate": "ela", "gate_options": {"variant": variant}}
    model = models.create("mobilenetv2_100", **options)
    return counting.count(model, 32)[0]

  assert count("base") == 3_568_808 == base + 9 * 7104
  assert count("large") == 3_916_904 == base + 58 * 7104
  with pytest.raises(ValueError, match="144 channels"):
    count("tiny")


# Blocks of the paper's tables, by the numbers of parameters that they take
# away: which stage they are of follows from these, and no source says more.
REMOVED = {
  ("mobilenetv1_100", (8,)): 266_752 + 2048,
  ("mobilenetv2_100", (11,)): 118_272,
  ("mobilenetv2_100", (14,)): 320_000,
  ("mobilenetv2_100", (8,)): 54_272,
  ("mobilenetv2_100", (11, 12, 14, 15)): 2 * 118_272 + 2 * 320_000,
}


@pytest.mark.parametrize(("name", "blocks"), REMOVED)
def test_counts_of_ulsam(name, blocks):
  def count(**fields):
    return counting.count(models.create(name, **fields), 32)[0]

  ulsam = {"gate": "ulsam", "gate_options": {"groups": 4}}
  widths = {8: 512 if "v1" in name else 64, 11: 96, 12: 96, 14: 160, 15: 160}
  gates = sum(5 * widths[block] + 12 for block in blocks)
  removed = count(replace=blocks)
  assert COUNTS[name][0] - removed == REMOVED[name, blocks]
  assert count(replace=blocks, **ulsam) == removed + gates
  assert count(insert=blocks, **ulsam) == COUNTS[name][0] + gates


def test_multiply_adds_of_what_is_replaced():
  """The papers' numbers, of images of 224 pixels."""

  def count(**fields):
    model = models.create("mobilenetv2_100", **fields)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return work.count_work(model.apply, variables, image).multiply_adds

  whole = count()
  assert round(whole / 1e6) in (300, 301)
  # 22.69 and 15.48 million.
  assert round((whole - count(replace=(11, 14))) / 1e4) == 3817


def _timm(**fields):
  """Timm's module of the sizes of a small model."""
  parity_helper.import_timm()
  from timm.models import _efficientnet_builder as builder
  from timm.models import efficientnet

  blocks = [["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e3_c16"], ["ir_r1_k3_s1_e2_c16"]]
  options = {"num_features": 24, "stem_size": 8, "num_classes": 5}
  if fields:
    blocks = [["dsa_r1_k3_s1_c16_noskip"], ["dsa_r2_k3_s2_c16_noskip"]]
    options["num_features"] = 0
  activation = parity_helper.import_torch().nn.ReLU6
  return efficientnet.EfficientNet(
    builder.decode_arch_def(blocks), act_layer=activation, **options
  )


@pytest.mark.parity
@pytest.mark.parametrize("fields", [{}, V1_SMALL], ids=["v2", "v1"])
@pytest.mark.parametrize("size", [16, 22])
def test_logits_and_gradients(fields, size):
  model = _small(**fields)
  variables = parity_helper.random_variables(model, 0)
  theirs = _timm(**fields)
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  images = parity_helper.random_images(2, size)
  (logits, ours), (expected, gradients) = parity_helper.logits_and_gradients(
    model, variables, theirs.eval(), images
  )
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits, expected, atol=2e-5)
  for name, gradient in gradients.items():
    error = np.abs(ours[name] - gradient).max()
    assert error < 1e-4 * np.abs(gradient).max() + 1e-6, name


@pytest.mark.parametrize("size", [(6, 6), (5, 8), (7, 3), (1, 2)])
def test_symmetric_padding_of_depthwise_filters(size):
  x = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
  layer = layers.DepthwiseConv(stride=2, padding="symmetric")
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
  variables = parity_helper.randomise(shapes, 0)
  kernel = variables["params"]["kernel"]
  expected = jax.lax.conv_general_dilated(
    x,
    kernel,
    (2, 2),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=3,
  )
  np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_a_gate_stands_where_it_is_said():
  """By the paths of its parameters, and by what it changes."""
  ulsam = {"gate": "ulsam", "gate_options": {"groups": 2}}

  def paths(**fields):
    flat = traverse_util.flatten_dict(_shapes(_small(**fields))["params"])
    return {"/".join(p[:2]) for p in flat if "gate" in p}

  expanding = {"stage_1/block_0", "stage_1/block_1", "stage_2/block_0"}
  assert paths() == set()
  assert paths(**ulsam) == expanding
  assert paths(insert=(0, 3), **ulsam) == {"stage_0/block_0", "stage_2/block_0"}
  assert paths(replace=(2,), **ulsam) == {"stage_1/block_1"}
  whole = traverse_util.flatten_dict(_shapes(_small(replace=(2,)))["params"])
  assert not [p for p in whole if p[:2] == ("stage_1", "block_1")]


def test_a_replaced_block_is_its_gate():
  model = _small(
    replace=(2,), insert=(3,), gate="ulsam", gate_options={"groups": 2}
  )
  variables = parity_helper.random_variables(model, 0)
  images = parity_helper.random_images(2, 16)
  run = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
  _, state = run(variables, images)
  stage = state["intermediates"]["stage_1"]
  before, after = (stage[f"block_{i}"]["hidden_state"] for i in range(2))
  weights = stage["block_1"]["gate"]["attention_weights"]
  factor = np.repeat(1 + weights, 8, axis=-1)
  np.testing.assert_allclose(after, before * factor, rtol=1e-5, atol=1e-6)
  # Behind the shortcut of a block, and not before it.
  assert "gate" in state["intermediates"]["stage_2"]["block_0"]


def test_maps_of_any_size():
  model = _small(num_classes=0)
  image = jax.ShapeDtypeStruct((1, 21, 30, 3), jnp.float32)
  variables = _shapes(model)
  maps = jax.eval_shape(
    functools.partial(model.apply, method="features"), variables, image
  )
  assert [m.shape for m in maps] == [(1, 11, 15, 8), (1, 6, 8, 16)]
  assert jax.eval_shape(model.apply, variables, image).shape == (1, 24)
  whole = models.create("mobilenetv2_100", num_classes=0)
  maps = jax.eval_shape(
    functools.partial(whole.apply, method="features"),
    _shapes(whole),
    jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
  )
  assert [m.shape[1:] for m in maps] == [
    (32, 32, 16),
    (16, 16, 24),
    (8, 8, 32),
    (4, 4, 96),
    (2, 2, 320),
  ]
  assert whole.size_multiple == 32


def test_precision_remat_and_statistics():
  model = _small(gate="ela", gate_options={"variant": "base"}, remat=True)
  model = model.clone(stages=((2, 8, 1, 2),))
  variables = parity_helper.random_variables(model, 0)
  images = parity_helper.random_images(2, 16)

  @functools.partial(jax.jit, static_argnums=2)
  def run(variables, images, dtype):
    def loss(params):
      logits, new = model.clone(dtype=dtype).apply(
        {**variables, "params": params},
        images,
        train=True,
        mutable=["batch_stats"],
      )
      return jnp.sin(logits).sum(), (logits, new)

    return jax.grad(loss, has_aux=True)(variables["params"])

  gradients, (exact, new) = run(variables, images, "float32")
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()),
    new["batch_stats"],
    variables["batch_stats"],
  )
  assert all(jax.tree.leaves(moved))
  _, (half, _) = run(variables, images, "bfloat16")
  assert half.dtype == jnp.float32
  assert 0 < jnp.abs(half - exact).max() < 0.1 * jnp.abs(exact).max()


def test_errors_say_what_would_fit():
  def init(**fields):
    _shapes(_small(**fields))

  with pytest.raises(ValueError, match=r"stages has \(1, 8, 1, 3\); each must"):
    init(stages=((1, 8, 1, 3),))
  with pytest.raises(ValueError, match="width_multiplier is 0; it must be pos"):
    init(width_multiplier=0)
  with pytest.raises(ValueError, match="replace has 4; blocks are from 0 to 3"):
    init(replace=(4,))
  with pytest.raises(ValueError, match=r"replace has 1, .* are \[0, 2, 3\]"):
    init(replace=(1,))
  with pytest.raises(ValueError, match=r"insert is \(1,\), but gate is 'none'"):
    init(insert=(1,))
  with pytest.raises(ValueError, match=r"insert and replace both have \[2\]"):
    init(insert=(2,), replace=(2,), gate="ulsam")
  with pytest.raises(ValueError, match="gate is 'ela' and replace is"):
    weight_maps.of(_small(gate="ela"))
