"""The GPU kernel of halo attention against the float32 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention.kernels import halo_gpu

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

  # Kernels are compiled more than they are run.
  @functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  def run(arrays, out_bar):
    out, pull = jax.vjp(lambda a: function(**a), arrays)
    return {"out": out, **pull(out_bar.astype(out.dtype))[0]}

  return run


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
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
  expected = _with_gradients(case, "xla")(wide, out_bar)
  again = run(arrays, out_bar)
  for name, want in expected.items():
    assert actual[name].dtype == dtype
    have = np.asarray(actual[name], np.float32)
    error = np.linalg.norm(have - want) / np.linalg.norm(want)
    assert error < TOLERANCE[dtype], f"{name}: {error}"
    np.testing.assert_array_equal(actual[name], again[name], err_msg=name)


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
