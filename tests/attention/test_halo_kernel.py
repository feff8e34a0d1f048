"""The TPU kernel of halo attention against the float32 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from tests.attention.kernel_runs import (
  assert_close,
  assert_same_bits,
  in_float32,
  with_gradients,
)

NAMES = ("q", "k", "v", "relative_height", "relative_width")
# (batch, height, width, heads, dim, v_dim), block, halo, stride, mask_padding
CASES = {
  "strided, odd heads, masked": ((2, 8, 8, 3, 16, 8), 4, 1, 2, True),
  "odd sizes, wide values": ((1, 7, 14, 1, 24, 72), 7, 2, 1, True),
  "halo beyond the next block": ((1, 4, 4, 2, 8, 8), 2, 3, 2, False),
  "no halo, two groups": ((2, 6, 3, 9, 16, 16), 3, 0, 1, False),
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def _draw(case, dtype="float32", seed=0, size=1.0):
  (batch, height, width, heads, dim, v_dim), block, halo, stride, _ = CASES[
    case
  ]
  rng = np.random.default_rng(seed)
  offsets = 2 * (block + 2 * halo) - 1
  rows, columns = height // stride, width // stride
  shapes = (
    (batch, rows, columns, heads, dim),
    (batch, height, width, heads, dim),
    (batch, height, width, heads, v_dim),
    (offsets, dim),
    (offsets, dim),
    (batch, rows, columns, heads, v_dim),
  )
  draw = lambda shape: jnp.asarray(size * rng.standard_normal(shape), dtype)
  return tuple(map(draw, shapes))


@functools.cache
def _gradients(case, implementation):
  """Returns a function of (*arguments, out_bar): the output and gradients."""
  _, block, halo, stride, mask_padding = CASES[case]

  def attend(q, k, v, relative_height, relative_width):
    return attention.halo_attention(
      q,
      k,
      v,
      block_size=block,
      halo_size=halo,
      relative_height=relative_height,
      relative_width=relative_width,
      stride=stride,
      mask_padding=mask_padding,
      implementation=implementation,
    )

  run = with_gradients(attend)
  return lambda *arrays: run(dict(zip(NAMES, arrays, strict=False)), arrays[-1])


# Interpreted kernels, forward and backward.
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_float32(case):
  arrays = _draw(case)
  expected = _gradients(case, "xla")(*arrays)
  actual = _gradients(case, "tpu_interpret")(*arrays)
  assert_close(actual, expected, TOLERANCE["float32"])


# Interpreted kernels, forward and backward.
@pytest.mark.slow
def test_bfloat16_and_the_same_bits_twice():
  case = "strided, odd heads, masked"
  arrays = _draw(case, "bfloat16")
  expected = _gradients(case, "xla")(*in_float32(arrays))
  actual = _gradients(case, "tpu_interpret")(*arrays)
  assert all(x.dtype == jnp.bfloat16 for x in actual.values())
  assert_close(actual, expected, TOLERANCE["bfloat16"])
  assert_same_bits(actual, _gradients(case, "tpu_interpret")(*arrays))


def test_rows_of_tables_that_are_never_read_have_no_gradient():
  case = "strided, odd heads, masked"
  out = _gradients(case, "tpu_interpret")(*_draw(case, seed=2))
  for name in ("relative_height", "relative_width"):
    assert not out[name][:2].any(), name
    # Two queries along a side of a block read no further than this.
    assert out[name][5 - 1 :].any(), name


def test_extreme_scores():
  # Scores of hundreds: exponentials overflow without the maximum.
  case = "strided, odd heads, masked"
  arrays = _draw(case, seed=3, size=8.0)
  expected = _gradients(case, "xla")(*arrays)
  actual = _gradients(case, "tpu_interpret")(*arrays)
  assert np.isfinite(actual["out"]).all()
  assert_close(actual["out"], expected["out"], 1e-4)


@pytest.mark.parametrize(
  ("dtypes", "scale", "message"),
  [
    (("float32", "bfloat16", "float32"), 1.0, "k is bfloat16"),
    (("float16",) * 3, 1.0, "q is float16"),
    (("float32",) * 3, 0.0, "scale is 0"),
  ],
)
def test_what_the_kernel_cannot_take(dtypes, scale, message):
  x = jnp.ones((1, 4, 4, 1, 8))
  q, k, v = (x.astype(dtype) for dtype in dtypes)
  options = {"block_size": 4, "halo_size": 1, "scale": scale}
  with pytest.raises(ValueError, match=message):
    attention.halo_attention(q, k, v, **options, implementation="tpu")


def test_an_image_too_large_is_refused_with_the_reason():
  x = jax.ShapeDtypeStruct((1, 512, 512, 8, 64), jnp.float32)
  run = functools.partial(
    attention.halo_attention, block_size=8, halo_size=3, implementation="tpu"
  )
  with pytest.raises(ValueError, match="MiB of VMEM"):
    jax.eval_shape(run, x, x, x)


# Size of the image, channels, heads: the stages of HaloNet-H1 for 256 pixels,
# with 4 heads in the first as in the paper, or 8 as in timm.
STAGES = [(64, 64, 4), (64, 64, 8), (32, 128, 8), (16, 256, 8), (8, 512, 8)]
COMPILED = [
  *(("v5e", stage) for stage in STAGES[1:]),
  ("v4", STAGES[0]),
  ("v5p", STAGES[-1]),
  ("v6e", STAGES[0]),
  ("tpu7x", STAGES[-1]),
]


@pytest.mark.compile
@pytest.mark.parametrize(("chip", "stage"), COMPILED)
def test_compiles_for_tpus(chip, stage):
  pytest.importorskip("libtpu")
  from tools.compile_only import compile_for

  size, channels, heads = stage
  dim = channels // heads

  def run(q, k, v, relative_height, relative_width, out_bar):
    def attend(*arrays):
      q, k, v = (x.reshape(*x.shape[:3], heads, dim) for x in arrays[:3])
      out = attention.halo_attention(
        q,
        k,
        v,
        block_size=8,
        halo_size=3,
        relative_height=arrays[3],
        relative_width=arrays[4],
        implementation="tpu",
      )
      return out.reshape(*out.shape[:3], channels)

    out, pullback = jax.vjp(attend, q, k, v, relative_height, relative_width)
    return out, pullback(out_bar)

  image = jax.ShapeDtypeStruct((16, size, size, channels), jnp.bfloat16)
  table = jax.ShapeDtypeStruct((27, dim), jnp.float32)
  compiled = compile_for(chip, run, *[image] * 3, table, table, image)
  memory = compiled.memory_analysis()
  # The log-sum-exps and constants; scores would be fifty times the inputs.
  assert memory.temp_size_in_bytes < 0.5 * memory.argument_size_in_bytes
