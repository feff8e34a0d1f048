"""The GPU kernel of halo attention against the float32 reference."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention.kernels import halo_gpu
from tests.attention.kernel_runs import (
  assert_close,
  assert_same_bits,
  in_float32,
  with_gradients,
)

# batch, height, width, heads, dim, v_dim, and options: one block and several,
# halos narrower and wider than a block, channels that fill no tile.
CASES = {
  "one block": ((1, 4, 4, 1, 16, 16), {"block_size": 4, "halo_size": 1}),
  "several, masked": (
    (2, 8, 12, 3, 20, 16),
    {"block_size": 4, "halo_size": 2, "mask_padding": True},
  ),
  "wide halo": ((1, 4, 6, 1, 16, 24), {"block_size": 2, "halo_size": 3}),
  "strided": (
    (1, 8, 8, 2, 16, 16),
    {"block_size": 4, "halo_size": 1, "stride": 2, "scale_positions": True},
  ),
  "7 x 7": ((1, 14, 7, 1, 16, 16), {"block_size": 7, "halo_size": 2}),
}
TOLERANCE = {jnp.float32: 5e-6, jnp.bfloat16: 2e-2}


def _arguments(case, dtype, seed=0):
  (batch, height, width, heads, dim, v_dim), options = CASES[case]
  stride = options.get("stride", 1)
  window = options["block_size"] + 2 * options["halo_size"]
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), dtype)

  queries = (batch, height // stride, width // stride, heads)
  arrays = {
    "q": draw(*queries, dim),
    "k": draw(batch, height, width, heads, dim),
    "v": draw(batch, height, width, heads, v_dim),
    "relative_height": draw(2 * window - 1, dim),
    "relative_width": draw(2 * window - 1, dim),
  }
  return arrays, draw(*queries, v_dim)


def _with_gradients(case, implementation):
  function = functools.partial(
    attention.halo_attention,
    **CASES[case][1],
    scale=0.3,
    implementation=implementation,
  )
  return with_gradients(function)


# Interpreted kernels, forward and backward.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "dtype"),
  [
    ("one block", jnp.float32),
    ("several, masked", jnp.float32),
    ("wide halo", jnp.float32),
    ("strided", jnp.float32),
    ("7 x 7", jnp.bfloat16),
  ],
)
def test_equals_the_reference_with_all_gradients(case, dtype, monkeypatch):
  # Programs that go through several blocks, the last through fewer.
  monkeypatch.setattr(halo_gpu, "PROGRAMS", 12)
  arrays, out_bar = _arguments(case, dtype)
  run = _with_gradients(case, "gpu_interpret")
  actual = run(arrays, out_bar)
  expected = _with_gradients(case, "xla")(in_float32(arrays), out_bar)
  assert all(x.dtype == dtype for x in actual.values())
  assert_close(actual, expected, TOLERANCE[dtype])
  assert_same_bits(actual, run(arrays, out_bar))


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"block_size": 12}, "block_size is 12"),
    ({"halo_size": 13}, "halo_size is 13"),
    ({"q": jnp.zeros((1, 8, 8, 1, 40), jnp.bfloat16)}, "dimension 40"),
    ({"q": jnp.zeros((1, 8, 8, 1, 16))}, "float32 blocks of at most 16"),
    ({"k": jnp.zeros((1, 8, 8, 1, 16))}, "k float32"),
    ({}, None),
  ],
)
def test_says_what_it_cannot_take(change, reason):
  x = jnp.zeros((1, 8, 8, 1, 16), jnp.bfloat16)
  arguments = {"q": x, "k": x, "v": x, "block_size": 8, "halo_size": 3}
  arguments |= {"stride": 1, "scale": 1.0, "mask_padding": False, **change}
  said = halo_gpu.unsupported_gpu(**arguments)
  assert said is None if reason is None else reason in said
