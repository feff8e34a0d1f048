"""The kernel of normalised feed-forward branches, and MaxViT with it."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import quantization
from models import (
  feed_forward_branch,
  feed_forward_tpu,
  flow_head,
  lina_layers,
  maxvit_blocks,
)
from models.feed_forward_tpu import Form, Parameters
from tests import parity_helper
from tests.attention import kernel_runs

EPSILON = 1e-5
# A norm before the layers, one behind them (LINA), or both, of which the first
# and a gate are of each token (its flow head).
FORMS = {
  "norm": Form(EPSILON),
  "behind": Form(activation="gelu", out_epsilon=1e-3),
  "adaptive": Form(1e-2, "silu", 1e-3),
}
# Tokens, channels and hidden channels: fewer than a tile, a tile and more than
# a tile, the last of which is not full; one turn of the loop over hidden
# channels and several; channels that do and do not fill registers.
CASES = [
  ("norm", 24, 8, 12),
  ("norm", 3, 5, 7),
  ("norm", 1024 + 48, 16, 256),
  ("norm", 256, 128, 768),
  ("behind", 3, 5, 7),
  ("behind", 1024 + 48, 16, 256),
  ("adaptive", 3, 5, 7),
  ("adaptive", 1024 + 48, 16, 16),
  ("adaptive", 136, 256, 768),
]


def _arrays(form, tokens, channels, hidden, dtype):
  keys = jax.random.split(jax.random.key(0), 12)
  draw = lambda key, *shape: jax.random.normal(key, shape)
  arrays = {
    # Far from mean 0.
    "x": (draw(keys[0], tokens, channels) + 3).astype(dtype),
    "w1": draw(keys[4], channels, hidden) / channels**0.5,
    "b1": draw(keys[5], hidden),
    "w2": draw(keys[6], hidden, channels) / hidden**0.5,
    "b2": draw(keys[7], channels),
  }
  if form == "norm":
    arrays["scale"] = 1 + 0.3 * draw(keys[2], channels)
    arrays["bias"] = draw(keys[3], channels)
  else:
    arrays["out_scale"] = 1 + 0.3 * draw(keys[9], channels)
    arrays["out_bias"] = draw(keys[10], channels)
  if form == "adaptive":
    modulation = draw(keys[11], tokens, 3 * channels)
    arrays["modulation"] = (0.5 * modulation).astype(dtype)
    arrays["modulation_bias"] = draw(keys[2], 3 * channels)
  factor = jax.random.bernoulli(keys[1], 0.6, (tokens,)) / 0.6
  return arrays, factor, draw(keys[8], tokens, channels).astype(dtype)


def _kernel(form, factor):
  @kernel_runs.with_gradients
  def run(x, modulation=None, scale=None, bias=None, **parameters):
    return feed_forward_tpu.branch(
      x,
      factor,
      Parameters(scale=scale, bias=bias, **parameters),
      FORMS[form],
      modulation,
      interpret=True,
    )

  return run


def _plain(form, factor):
  """The same, written out in float64, with the gradients that JAX derives."""

  @kernel_runs.with_gradients
  def run(x, w1, b1, w2, b2, **rest):
    def norm(x, epsilon):
      x = x - x.mean(1, keepdims=True)
      return x / jnp.sqrt((x**2).mean(1, keepdims=True) + epsilon)

    of = FORMS[form]
    y, gate = x, 1
    if "scale" in rest:
      y = norm(x, of.epsilon) * rest["scale"][None] + rest["bias"][None]
    if "modulation" in rest:
      both = rest["modulation"] + rest["modulation_bias"][None]
      scale, shift, gate = jnp.split(both, 3, axis=1)
      y = norm(x, of.epsilon) * (1 + scale) + shift
    h = y @ w1 + b1[None]
    if of.activation == "silu":
      h = h / (1 + jnp.exp(-h))
    elif of.activation == "gelu":
      h = h / 2 * jax.scipy.special.erfc(-h / 2**0.5)
    else:
      cube = h + 0.044715 * h**3
      h = h / 2 * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * cube))
    y = h @ w2 + b2[None]
    if "out_scale" in rest:
      y = norm(y, of.out_epsilon) * rest["out_scale"][None]
      y += rest["out_bias"][None]
    return x + factor[:, None] * gate * y

  return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, dtype):
  form = case[0]
  arrays, factor, out_bar = _arrays(*case, dtype)
  found = _kernel(form, factor)(arrays, out_bar)
  assert found["out"].dtype == found["x"].dtype == dtype
  assert found["w1"].dtype == found["w2"].dtype == jnp.float32
  with jax.enable_x64(True):
    wide = lambda x: jnp.asarray(np.float64(x))
    wide_arrays = jax.tree.map(wide, arrays), wide(out_bar)
    want = _plain(form, wide(factor))(*wide_arrays)
    want = jax.tree.map(np.asarray, want)
  assert want["x"].dtype == jnp.float64
  # In bfloat16 all that is multiplied is rounded to 8 bits.
  rounded = 1e-2 if form == "norm" else 2e-2
  tolerance = {"float32": 3e-6, "bfloat16": rounded}[dtype]
  for name, expected in want.items():
    error = np.linalg.norm(np.float64(found[name]) - expected)
    assert error < tolerance * np.linalg.norm(expected), (name, error)


class _Nothing(nn.Module):
  """In the place of attention."""

  @nn.compact
  def __call__(self, x):
    return x


def _layer(implementation, dtype="float32"):
  return maxvit_blocks.TransformerLayer(
    lambda name: _Nothing(name=name), 4, 0.5, implementation, dtype, "float32"
  )


def _run(implementation):
  @kernel_runs.with_gradients
  def run(variables, x):
    return _layer(implementation).apply(
      variables, x, True, rngs={"dropout": jax.random.key(3)}
    )

  return run


@pytest.fixture(scope="module")
def layer():
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (4, 3, 5, 8))
  init = lambda key: _layer("xla").init({"params": key}, x, False)
  shapes = jax.eval_shape(init, keys[1])
  leaves, tree = jax.tree.flatten(shapes)
  variables = jax.tree.unflatten(
    tree,
    [
      jax.random.normal(key, leaf.shape)
      for key, leaf in zip(
        jax.random.split(keys[1], len(leaves)), leaves, strict=True
      )
    ],
  )
  arrays = {"variables": variables, "x": x}
  out_bar = jax.random.normal(keys[2], x.shape)
  return arrays, out_bar, _run("xla")(arrays, out_bar)


def test_layer_drops_the_same_images(layer):
  arrays, out_bar, want = layer
  found = _run("tpu_interpret")(arrays, out_bar)
  kernel_runs.assert_close(found, want, 1e-5)
  # Each branch is there or not, at random.
  assert _dropped(arrays, want["out"]) not in (0, len(arrays["x"]))


def _dropped(arrays, out):
  """How many images lost the branch: attention may have been kept."""
  x = arrays["x"]
  norm = maxvit_blocks.LayerNorm()
  params = {"params": arrays["variables"]["params"]["attention_norm"]}
  kept = x + 2 * norm.apply(params, x)
  lost = lambda before: jnp.isclose(out, before, atol=1e-4).all((1, 2, 3))
  return int((lost(x) | lost(kept)).sum())


def test_is_split_over_devices(layer):
  arrays, out_bar, want = layer
  mesh = jax.make_mesh(
    (2, 2),
    ("data", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  with jax.set_mesh(mesh):
    found = _run("tpu_interpret")(arrays, out_bar)
  kernel_runs.assert_close(found, want, 1e-5)


def test_layers_run_one_by_one_where_their_calls_are_intercepted(layer):
  arrays, _, _ = layer
  apply = lambda name: _layer(name).apply(*arrays.values(), False)
  with quantization.w4a4():
    want = apply("xla")
    np.testing.assert_array_equal(apply("auto"), want)
    with pytest.raises(ValueError, match="put at the layers"):
      apply("tpu")


def _lina_block(implementation, dtype="float32"):
  return lina_layers.Block(
    lambda name: _Mixed(name=name), implementation, dtype, "float32"
  )


def _flow_block(implementation, dtype="float32"):
  return flow_head.FlowBlock(implementation, dtype, "float32")


class _Mixed(nn.Module):
  """In the place of attention, some other function of tokens."""

  @nn.compact
  def __call__(self, x, lengths):
    return jnp.flip(x, 1)


# Name: a block, and shapes of what it maps.
BLOCKS = {
  "lina": (_lina_block, ((3, 7, 24),)),
  "flow": (_flow_block, ((3, 2, 5, 24),) * 2),
  # Leading axes, as a sampler may have them.
  "flow of tokens": (_flow_block, ((5, 24),) * 2),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_of_lina(case):
  create, shapes = BLOCKS[case]
  inputs = [
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate(shapes)
  ]
  variables = parity_helper.randomise(
    jax.eval_shape(create("xla").init, jax.random.key(0), *inputs), 0
  )

  def run(implementation):
    @kernel_runs.with_gradients
    def run(variables, inputs):
      return create(implementation).apply(variables, *inputs)

    out_bar = jax.random.normal(jax.random.key(4), shapes[0])
    return run({"variables": variables, "inputs": inputs}, out_bar)

  kernel_runs.assert_close(run("tpu_interpret"), run("xla"), 1e-5)


def test_modulation_is_of_each_token():
  x, condition = jnp.ones((3, 5, 8)), jnp.ones((3, 1, 8))
  variables = _flow_block("xla").init(jax.random.key(0), x, condition)
  with pytest.raises(ValueError, match="one for each token"):
    _flow_block("tpu").apply(variables, x, condition)


def _choose(shape, implementation, dtype="bfloat16", layer_dtype="bfloat16"):
  channels = shape[-1]
  dense = lambda *s: {
    "kernel": jax.ShapeDtypeStruct(s, "float32"),
    "bias": jax.ShapeDtypeStruct(s[1:], "float32"),
  }
  variables = {
    "ffn_norm": dict.fromkeys(
      ("scale", "bias"), jax.ShapeDtypeStruct((channels,), "float32")
    ),
    "ffn": {
      "expand": dense(channels, 4 * channels),
      "shrink": dense(4 * channels, channels),
    },
  }
  x = jax.ShapeDtypeStruct(shape, dtype)
  parameters = feed_forward_branch.parameters(
    variables["ffn_norm"], *variables["ffn"].values()
  )
  return feed_forward_branch.kernel(
    x, parameters, Form(EPSILON), layer_dtype, implementation, least=4
  )


@pytest.mark.parametrize(
  ("shape", "dtype", "why"),
  [
    ((1, 4, 4, 8), "float16", "x is float16"),
    ((0, 4, 4, 8), "bfloat16", "at least one element"),
    ((1, 4, 4, 2048), "bfloat16", "bytes of VMEM"),
  ],
)
def test_what_it_does_not_take(shape, dtype, why):
  with pytest.raises(ValueError, match=why):
    _choose(shape, "tpu", dtype, dtype)


@pytest.mark.compile
def test_is_chosen_where_it_is_faster():
  pytest.importorskip("libtpu")
  from tools import compile_only

  def chosen(chip, *shape):
    mesh = compile_only.device_sharding(chip).mesh.abstract_mesh
    with jax.sharding.use_abstract_mesh(mesh):
      return _choose(shape, "auto") is not None

  assert chosen("v5e", 16, 14, 14, 384)
  # Parameters take longer than tokens; the batch is in lanes; little VMEM.
  assert not chosen("v5e", 16, 7, 7, 768)
  assert not chosen("v5e", 256, 14, 14, 384)
  assert not chosen("v4", 16, 14, 14, 384)
  # This machine has no TPU.
  assert _choose((16, 14, 14, 384), "auto") is None


# Name: a layer, shapes of what it maps, arguments behind them.
COMPILED = {
  "maxvit": (_layer, ((16, 14, 14, 128),), (False,)),
  "lina": (_lina_block, ((8, 65, 128),), ()),
  "flow": (_flow_block, ((8, 2, 36, 128),) * 2, ()),
}


@pytest.mark.compile
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
@pytest.mark.parametrize("case", COMPILED)
def test_compiles(chip, case):
  pytest.importorskip("libtpu")
  from tools import compile_only

  create, shapes, rest = COMPILED[case]
  layer = create("tpu", "bfloat16")
  inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
  variables = jax.eval_shape(
    lambda key: layer.init(
      {"params": key}, *(jnp.zeros(x.shape, x.dtype) for x in inputs), *rest
    ),
    jax.random.key(0),
  )

  def train(variables, *inputs):
    apply = lambda *a: layer.apply(*a, *rest)
    out, pull = jax.vjp(apply, variables, *inputs)
    return out, pull(out)

  text = compile_only.compile_for(chip, train, variables, *inputs).as_text()
  assert "feed_forward_backward" in text
  if case == "maxvit":
    # The stream is the largest array: hidden channels of tokens are in none.
    arrays = re.findall(r"(?:bf16|f32)\[([\d,]+)\]", text)
    largest = max(math.prod(map(int, sizes.split(","))) for sizes in arrays)
    assert largest == math.prod(shapes[0])
