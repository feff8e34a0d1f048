"""The GPU kernel of window attention against the float32 reference."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention.kernels import window_gpu
from tests.attention.kernel_runs import (
  assert_close,
  assert_same_bits,
  in_float32,
  with_gradients,
)

# batch, height, width, heads, dim, v_dim, window: square and odd images, odd
# heads, one token more than a tile, windows of several tiles of queries.
SHAPES = {
  "7x7": (2, 14, 21, 3, 16, 16, 7),
  "one window, odd sizes": (1, 5, 5, 1, 24, 20, 5),
  "8x8": (1, 16, 8, 2, 16, 32, 8),
  "12x12": (1, 12, 24, 1, 16, 16, 12),
}
TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 2e-2}


def _arguments(shape, dtype, *, bias=True, seed=0):
  batch, height, width, heads, dim, v_dim, window = SHAPES[shape]
  rng = np.random.default_rng(seed)

  def draw(*sizes, dtype=dtype):
    return jnp.asarray(rng.standard_normal(sizes), dtype)

  image = (batch, height, width, heads)
  arrays = {
    "q": draw(*image, dim),
    "k": draw(*image, dim),
    "v": draw(*image, v_dim),
    "bias": draw(heads, window**2, window**2, dtype=jnp.float32),
  }
  if not bias:
    arrays["bias"] = None
  return arrays, draw(*image, v_dim)


def _function(shape, grid, implementation):
  function = attention.grid_attention if grid else attention.block_attention
  return functools.partial(
    function,
    window_size=SHAPES[shape][-1],
    scale=0.3,
    implementation=implementation,
  )


def _compare(shape, grid, arrays, out_bar, dtype):
  run = with_gradients(_function(shape, grid, "gpu_interpret"))
  actual = run(arrays, out_bar)
  assert actual["out"].dtype == actual["q"].dtype == dtype
  reference = with_gradients(_function(shape, grid, "xla"))
  expected = reference(in_float32(arrays), out_bar)
  assert_close(actual, expected, TOLERANCE[dtype])
  assert_same_bits(actual, run(arrays, out_bar))


@pytest.mark.parametrize(
  ("shape", "grid", "bias", "dtype"),
  [
    ("7x7", False, True, jnp.float32),
    ("7x7", True, True, jnp.bfloat16),
    ("7x7", True, False, jnp.float32),
    ("one window, odd sizes", False, True, jnp.float32),
    ("8x8", True, True, jnp.float32),
    ("8x8", False, False, jnp.bfloat16),
    ("12x12", True, True, jnp.bfloat16),
  ],
)
def test_equals_the_reference_with_all_gradients(shape, grid, bias, dtype):
  arrays, out_bar = _arguments(shape, dtype, bias=bias)
  _compare(shape, grid, arrays, out_bar, dtype)


def test_many_windows_in_each_of_few_programs(monkeypatch):
  # Three chunks of windows, the last one shorter.
  monkeypatch.setattr(window_gpu, "FORWARD_PROGRAMS", 9)
  monkeypatch.setattr(window_gpu, "BACKWARD_PROGRAMS", 9)
  arrays, out_bar = _arguments("7x7", jnp.float32)
  arrays = {
    name: x if name == "bias" else x[:, :, :14] for name, x in arrays.items()
  }
  out_bar = out_bar[:, :, :14]
  _compare("7x7", False, arrays, out_bar, jnp.float32)


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"window_size": 17}, "window_size is 17"),
    ({"q": jnp.zeros((1, 7, 7, 1, 160))}, "q has heads of dimension 160"),
    ({"v": jnp.zeros((1, 7, 7, 1, 160))}, "v has heads of dimension 160"),
    ({"k": jnp.zeros((1, 7, 7, 1, 8), jnp.bfloat16)}, "k bfloat16"),
    ({"window_size": 9}, "float32 windows of at most 64 tokens"),
    ({}, None),
  ],
)
def test_says_what_it_cannot_take(change, reason):
  x = jnp.zeros((1, 7, 7, 1, 8))
  arguments = {"q": x, "k": x, "v": x, "bias": None, "window_size": 7} | change
  said = window_gpu.unsupported_gpu(**arguments)
  assert said is None if reason is None else reason in said
