"""The TPU kernel of window attention against the float32 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import attention
from attention.kernels import window, window_plan
from tests.attention.kernel_runs import (
  assert_close,
  assert_same_bits,
  in_float32,
  with_gradients,
)

# batch, height, width, heads, dim, window. Groups of heads are 3 of 4; 4 and
# 1; 2; and 5 whose lanes do not fill a register.
SHAPES = {
  "7x7": (1, 7, 14, 3, 32, 7),
  "two groups": (2, 4, 2, 5, 32, 2),
  "4x4": (1, 8, 4, 2, 64, 4),
  "5 heads": (3, 2, 4, 5, 24, 2),
  "9x9": (1, 9, 9, 1, 16, 9),
  "batch in lanes": (128, 4, 2, 5, 32, 2),
  "batch in rows": (16, 4, 6, 5, 32, 2),
}
# Of the largest element. The unit's reciprocal is interpreted in bfloat16.
TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 1.5e-2}


def _arguments(shape, dtype=jnp.float32, *, bias=True, seed=0):
  batch, height, width, heads, dim, side = SHAPES[shape]
  rng = np.random.default_rng(seed)
  image = (batch, height, width, heads, dim)
  arrays = {
    name: jnp.asarray(rng.standard_normal(image), dtype) for name in "qkv"
  }
  if bias:
    bias = rng.standard_normal((heads, side**2, side**2))
    arrays["bias"] = jnp.asarray(bias, jnp.float32)
  return arrays, jnp.asarray(rng.standard_normal(image), jnp.float32)


def _function(shape, grid, implementation, scale=0.3):
  function = attention.grid_attention if grid else attention.block_attention
  return functools.partial(
    function,
    window_size=SHAPES[shape][-1],
    scale=scale,
    implementation=implementation,
  )


def _results(shape, grid, implementation, arguments, out_bar):
  """Returns the output and the gradient of each argument, by name."""
  run = with_gradients(_function(shape, grid, implementation))
  results = run(arguments, out_bar)
  if implementation != "xla":
    assert_same_bits(results, run(arguments, out_bar))
  return results


# Slow: eight windows side by side in one turn of a loop are much to compile.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "grid", "dtype", "bias"),
  [
    ("7x7", True, jnp.bfloat16, True),
    ("4x4", True, jnp.float32, False),
    ("5 heads", True, jnp.bfloat16, True),
    ("batch in lanes", True, jnp.bfloat16, True),
    ("batch in rows", True, jnp.bfloat16, True),
    ("batch in rows", False, jnp.float32, True),
  ],
)
def test_equals_the_reference(shape, grid, dtype, bias):
  arguments, out_bar = _arguments(shape, dtype, bias=bias)
  results = _results(shape, grid, "tpu_interpret", arguments, out_bar)
  for name, value in arguments.items():
    assert results[name].dtype == value.dtype
  exact = in_float32(arguments)
  expected = _results(shape, grid, "xla", exact, out_bar)
  assert_close(results, expected, TOLERANCE[dtype])


def test_a_window_of_uneven_rows():
  arguments, _ = _arguments("9x9")
  out = jax.jit(_function("9x9", False, "tpu_interpret"))(**arguments)
  expected = _function("9x9", False, "xla")(**arguments)
  assert_close({"out": out}, {"out": expected}, TOLERANCE[jnp.float32])


# Interpreted kernels, or the compiler for the chip.
@pytest.mark.slow
@pytest.mark.parametrize("shape", ["two groups", "batch in lanes"])
def test_heads_of_very_different_scores(shape):
  # Scores of about +200 in one head, -200 in another, small in the others: no
  # maximum that heads share would do.
  arguments, out_bar = _arguments(shape)
  shift = jnp.array([200.0, -200.0, 0.0, 0.0, 100.0])
  arguments["bias"] += shift[:, None, None]
  results = _results(shape, False, "tpu_interpret", arguments, out_bar)
  expected = _results(shape, False, "xla", arguments, out_bar)
  # float32 has spacings of 1.5e-5 at 200.
  assert_close(results, expected, 1e-4)


def test_what_is_not_a_number_stays_in_its_window():
  arguments, _ = _arguments("5 heads")
  function = jax.jit(_function("5 heads", False, "tpu_interpret"))
  clean = function(**arguments)
  for name in "qkv":
    arguments[name] = arguments[name].at[:, 1, 2].set(jnp.nan)
  out = function(**arguments)
  np.testing.assert_allclose(out[:, :, :2], clean[:, :, :2], atol=1e-5)
  assert jnp.isnan(out[:, :, 2:]).all()


def test_on_several_devices():
  arguments, out_bar = _arguments("two groups")
  expected = _results("two groups", False, "xla", arguments, out_bar)
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh):
    results = _results("two groups", False, "tpu_interpret", arguments, out_bar)
  assert_close(results, expected, TOLERANCE[jnp.float32])


def test_packing_the_bias_and_back():
  plan = _plan("5 heads")
  bias = np.random.default_rng(0).standard_normal((5, 4, 4)).astype(np.float32)
  packed = window_plan.pack_bias(plan, jnp.asarray(bias))
  assert packed.shape == plan.bias_shape
  back = window_plan.unpack_bias(plan, packed) * np.log(2)
  np.testing.assert_allclose(back, bias, rtol=1e-6)
  assert (packed == window_plan.MASKED).sum() + bias.size <= packed.size
  # Every score that is not of two tokens of the window is 0 or masked.
  others = window_plan.unpack_bias(plan, jnp.zeros_like(packed).at[:].set(1))
  assert others.sum() == bias.size


def test_a_step_divides_the_work_and_fits():
  for shape in SHAPES:
    for direction in ("forward", "backward"):
      plan = _plan(shape, direction)
      assert plan.batch % (plan.images * plan.cores) == 0
      assert plan.rows % plan.strips == 0
      assert plan.columns % plan.unroll == 0
      assert plan.vmem_bytes() <= window_plan.VMEM_AIM


def _plan(shape, direction="forward"):
  batch, height, width, heads, dim, side = SHAPES[shape]
  return window_plan.Plan(
    batch=batch,
    height=height,
    width=width,
    heads=heads,
    dim=dim,
    side=side,
    grid=False,
    scale=1.0,
    dtype="float32",
    has_bias=True,
    direction=direction,
  ).sized()


def test_says_why_it_cannot():
  q = jax.ShapeDtypeStruct((1, 16, 16, 2, 32), jnp.bfloat16)
  v = jax.ShapeDtypeStruct((1, 16, 16, 2, 64), jnp.bfloat16)
  why = functools.partial(window.unsupported, window_size=16)
  assert why(q, q, q, None) is None
  assert "dimension 64; the kernel needs the 32" in why(q, q, v, None)
  half = jax.ShapeDtypeStruct(q.shape, jnp.float16)
  assert "q is float16" in why(half, half, half, None)
  assert "k is float16" in why(q, half, q, None)
  wide = jax.ShapeDtypeStruct((1, 64, 4096, 8, 128), jnp.float32)
  assert "MiB of VMEM" in why(wide, wide, wide, None)
  x = jnp.ones(half.shape, half.dtype)
  with pytest.raises(ValueError, match="'tpu', but q is float16"):
    attention.block_attention(x, x, x, window_size=4, implementation="tpu")


# MaxViT-B at 224 pixels: side of the image in tokens, heads.
STAGES = [(56, 3), (28, 6), (14, 12), (7, 24)]


# A batch in rows, one that fills lanes, and one that does neither.
CHIPS = [
  ("v5e", 0, 16, False),
  ("v5e", 2, 16, True),
  ("v5e", 1, 256, True),
  ("v5e", 1, 17, True),
  ("v5e", 3, 256, False),
  ("v4", 0, 16, True),
  ("v5p", 0, 256, True),
  ("v6e", 1, 16, False),
  ("v6e", 3, 16, False),
  ("tpu7x", 3, 256, True),
]


# Interpreted kernels, or the compiler for the chip.
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize(("chip", "stage", "batch", "grid"), CHIPS)
def test_compiles(chip, stage, batch, grid):
  pytest.importorskip("libtpu")
  from tools.compile_only import compile_for

  size, heads = STAGES[stage]
  image = jax.ShapeDtypeStruct((batch, size, size, heads, 32), jnp.bfloat16)
  bias = jax.ShapeDtypeStruct((heads, 49, 49), jnp.float32)
  function = attention.grid_attention if grid else attention.block_attention

  def both(q, k, v, bias, out_bar):
    run = functools.partial(function, window_size=7, implementation="tpu")
    out, pull = jax.vjp(lambda *x: run(*x[:3], bias=x[3]), q, k, v, bias)
    return out, pull(out_bar)

  compiled = compile_for(chip, both, image, image, image, bias, image)
  assert compiled.as_text().count("tpu_custom_call") >= 2
  padded = batch * size * -(-size // 8) * 8 * -(-heads * 32 // 128) * 128 * 2
  # With the batch in lanes there is nothing but the biases. Otherwise there may
  # be copies into the layout of the kernel; the scores would be more.
  images = 0 if batch == 256 else 9
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < images * padded + 2**24
