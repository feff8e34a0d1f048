"""The kernel of depthwise convolution for TPUs, and LINA's layer with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models import depthwise_tpu, lina_attention
from models.depthwise import depthwise_convolution
from tests.attention import kernel_runs

# Images and filters: columns that fill registers, that do not, and fewer than
# a filter has; rows of several turns of a loop and of none; one channel, some
# and more than 128; even filters.
CASES = [
  ((1, 9, 16, 3), (5, 5)),
  ((2, 3, 21, 130), (3, 3)),
  ((2, 16, 7, 1), (3, 5)),
  ((1, 2, 3, 2), (5, 4)),
  ((1, 5, 8, 2), (2, 2)),
  ((1, 4, 17, 2), (1, 1)),
]


def _run(implementation):
  @kernel_runs.with_gradients
  def run(x, kernel):
    return depthwise_convolution(x, kernel, 1, implementation)

  return run


@kernel_runs.with_gradients
def _reference(x, kernel):
  return lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
    precision=lax.Precision.HIGHEST,
  )


def _arrays(shape, window, dtype):
  keys = jax.random.split(jax.random.key(0), 3)
  arrays = {
    "x": jax.random.normal(keys[0], shape, dtype),
    "kernel": jax.random.normal(keys[1], (*window, 1, shape[-1])),
  }
  return arrays, jax.random.normal(keys[2], shape, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "window"), CASES)
def test_values_and_gradients(shape, window, dtype):
  arrays, out_bar = _arrays(shape, window, dtype)
  found = _run("tpu_interpret")(arrays, out_bar)
  wanted = _reference(
    kernel_runs.in_float32(arrays), kernel_runs.in_float32(out_bar)
  )
  assert found["out"].dtype == found["x"].dtype == dtype
  assert found["kernel"].dtype == jnp.float32
  # What is rounded to 8 bits at the end, once.
  rounded = {"float32": 2e-6, "bfloat16": 3e-3}[dtype]
  kernel_runs.assert_close(found, wanted, rounded)
  # Gradients of filters are not rounded: products are summed in float32.
  kernel_runs.assert_close(found["kernel"], wanted["kernel"], 2e-6)


def test_is_split_over_devices():
  arrays, out_bar = _arrays((4, 3, 5, 6), (3, 3), "float32")
  want = _run("tpu_interpret")(arrays, out_bar)
  mesh = jax.make_mesh(
    (2, 2),
    ("data", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  with jax.set_mesh(mesh):
    found = _run("tpu_interpret")(arrays, out_bar)
  kernel_runs.assert_close(found, want, 2e-6)


@pytest.mark.parametrize(
  ("shape", "window", "stride", "dtype", "why"),
  [
    ((1, 4, 4, 1), (3, 3), 2, "float32", "stride is 2"),
    ((1, 4, 4, 1), (3, 3), 1, "float16", "x is float16"),
    ((0, 4, 4, 1), (3, 3), 1, "float32", "at least one element"),
    ((1, 9, 9, 1), (7, 7), 1, "float32", "at most 25 numbers"),
    ((1, 512, 512, 1), (3, 3), 1, "bfloat16", "bytes of VMEM"),
  ],
)
def test_what_it_does_not_take(shape, window, stride, dtype, why):
  x = jax.ShapeDtypeStruct(shape, dtype)
  kernel = jax.ShapeDtypeStruct((*window, 1, 1), "float32")
  with pytest.raises(ValueError, match=why):
    jax.eval_shape(
      lambda *a: depthwise_convolution(*a, stride, "tpu"), x, kernel
    )


def test_layer_of_lina():
  """Through the layer: the kernel of attention and that of its convolution."""
  layer = lina_attention.LinaAttention(2, gate="key_value", grid=(3, 4))
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 15, 8))
  variables = layer.init(keys[1], x)
  out_bar = jax.random.normal(keys[2], x.shape)

  def run(implementation):
    function = layer.clone(implementation=implementation).apply
    return kernel_runs.with_gradients(function)(
      {"variables": variables, "x": x}, out_bar
    )

  traced = str(
    jax.make_jaxpr(layer.clone(implementation="tpu_interpret").apply)(
      variables, x
    )
  )
  assert "depthwise_convolution" in traced
  assert "linear_attention_make" in traced
  kernel_runs.assert_close(run("tpu_interpret"), run("xla"), 1e-5)


@pytest.mark.compile
@pytest.mark.parametrize(
  ("chip", "side", "window"),
  [("v5e", 64, 5), ("v6e", 64, 5), ("v5e", 7, 3), ("v6e", 128, 5)],
)
def test_compiles(chip, side, window):
  pytest.importorskip("libtpu")
  from tools import compile_only

  def train(x, kernel):
    out, pull = jax.vjp(
      lambda *a: depthwise_convolution(*a, 1, "tpu"), x, kernel
    )
    return out, pull(out)

  x = jax.ShapeDtypeStruct((1, side, side, 192), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((window, window, 1, 192), jnp.float32)
  compiled = compile_only.compile_for(chip, train, x, kernel)
  assert "depthwise_convolution_filter" in compiled.as_text()


def test_vmem_of_the_plan():
  """Scratch has the rows and columns that shifts read, whole registers."""
  x = jax.ShapeDtypeStruct((1, 128, 128, 256), jnp.bfloat16)
  plan = depthwise_tpu.make_plan(x, np.zeros((5, 5, 1, 256)))
  assert plan.scratch == (132, 144, 128)
  assert plan.vmem_bytes == 4 * 128**3 * 2 + 4 * 132 * 144 * 128
