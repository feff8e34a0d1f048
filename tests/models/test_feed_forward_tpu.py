"""The kernel of normalised feed-forward branches, and MaxViT with it."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import quantization
from models import feed_forward_branch, feed_forward_tpu, maxvit_blocks
from models.feed_forward_tpu import Parameters
from tests.attention import kernel_runs

EPSILON = 1e-5
# Tokens, channels and hidden channels: fewer than a tile, a tile and more than
# a tile, the last of which is not full; one turn of the loop over hidden
# channels and several; channels that do and do not fill registers.
CASES = [
  (24, 8, 12),
  (3, 5, 7),
  (1024 + 48, 16, 256),
  (256, 128, 768),
]


def _arrays(tokens, channels, hidden, dtype):
  keys = jax.random.split(jax.random.key(0), 9)
  draw = lambda key, *shape: jax.random.normal(key, shape)
  arrays = {
    # Far from mean 0.
    "x": (draw(keys[0], tokens, channels) + 3).astype(dtype),
    "scale": 1 + 0.3 * draw(keys[2], channels),
    "bias": draw(keys[3], channels),
    "w1": draw(keys[4], channels, hidden) / channels**0.5,
    "b1": draw(keys[5], hidden),
    "w2": draw(keys[6], hidden, channels) / hidden**0.5,
    "b2": draw(keys[7], channels),
  }
  factor = jax.random.bernoulli(keys[1], 0.6, (tokens,)) / 0.6
  return arrays, factor, draw(keys[8], tokens, channels).astype(dtype)


def _kernel(factor):
  @kernel_runs.with_gradients
  def run(x, **parameters):
    return feed_forward_tpu.branch(
      x, factor, Parameters(**parameters), epsilon=EPSILON, interpret=True
    )

  return run


def _formula(arrays, factor, out_bar):
  """The output and all gradients in float64, written out."""
  x, scale, bias, w1, b1, w2, b2 = (np.float64(a) for a in arrays.values())
  factor, out_bar = np.float64(factor)[:, None], np.float64(out_bar)
  deviation = 1 / np.sqrt(x.var(1, keepdims=True) + EPSILON)
  normed = (x - x.mean(1, keepdims=True)) * deviation
  h = (normed * scale + bias) @ w1 + b1
  c = np.sqrt(2 / np.pi)
  t = np.tanh(c * (h + 0.044715 * h**3))
  a = h * (1 + t) / 2
  g = factor * out_bar
  slope = (1 + t) / 2 + h / 2 * (1 - t**2) * c * (1 + 3 * 0.044715 * h**2)
  h_bar = g @ w2.T * slope
  n_bar = h_bar @ w1.T
  b = n_bar * scale
  x_bar = deviation * (
    b - b.mean(1, keepdims=True) - normed * (b * normed).mean(1, keepdims=True)
  )
  return {
    "out": x + factor * (a @ w2 + b2),
    "x": out_bar + x_bar,
    "scale": (n_bar * normed).sum(0),
    "bias": n_bar.sum(0),
    "w1": (normed * scale + bias).T @ h_bar,
    "b1": h_bar.sum(0),
    "w2": a.T @ g,
    "b2": g.sum(0),
  }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", CASES)
def test_values_and_gradients(sizes, dtype):
  arrays, factor, out_bar = _arrays(*sizes, dtype)
  found = _kernel(factor)(arrays, out_bar)
  assert found["out"].dtype == found["x"].dtype == dtype
  assert found["w1"].dtype == found["w2"].dtype == jnp.float32
  # In bfloat16 all that is multiplied is rounded to 8 bits.
  tolerance = {"float32": 3e-6, "bfloat16": 1e-2}[dtype]
  for name, want in _formula(arrays, factor, out_bar).items():
    error = np.linalg.norm(np.float64(found[name]) - want)
    assert error < tolerance * np.linalg.norm(want), (name, error)


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
  return feed_forward_branch.kernel(
    x, variables, layer_dtype, EPSILON, implementation
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


@pytest.mark.compile
@pytest.mark.parametrize(
  ("chip", "shape"), [("v5e", (16, 14, 14, 128)), ("v6e", (2, 16, 24, 96))]
)
def test_compiles(chip, shape):
  pytest.importorskip("libtpu")
  from tools import compile_only

  layer = _layer("tpu", "bfloat16")
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  variables = jax.eval_shape(
    lambda key: layer.init({"params": key}, jnp.zeros(shape, x.dtype), False),
    jax.random.key(0),
  )

  def train(variables, x):
    out, pull = jax.vjp(lambda *a: layer.apply(*a, False), variables, x)
    return out, pull(out)

  text = compile_only.compile_for(chip, train, variables, x).as_text()
  assert "feed_forward_backward" in text
  # The stream is the largest array: hidden channels of tokens are in none.
  arrays = re.findall(r"(?:bf16|f32)\[([\d,]+)\]", text)
  largest = max(math.prod(map(int, sizes.split(","))) for sizes in arrays)
  assert largest == math.prod(shape)
