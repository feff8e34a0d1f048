import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from models import dense

SHAPES = [
  # x, kernel: widening, narrowing, one to many axes, many axes to one.
  ((2, 3, 5, 7), (7, 11)),
  ((2, 3, 5, 11), (11, 7)),
  ((4, 6), (6, 3, 2, 5)),
  ((2, 3, 2, 5), (2, 5, 4)),
  ((2, 3, 2, 5), (2, 5, 13)),
]


def numbers(x, kernel):
  n = next(n for n in (1, 2) if x.shape[x.ndim - n :] == kernel.shape[:n])
  return (tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ())


@pytest.mark.parametrize(("x_shape", "kernel_shape"), SHAPES)
@pytest.mark.parametrize(
  ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)]
)
def test_value_and_gradients_equal_autodiff(
  x_shape, kernel_shape, dtype, tolerance
):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=x_shape), dtype)
  kernel = jnp.asarray(rng.normal(size=kernel_shape), dtype)
  dims = numbers(x, kernel)
  weight = jnp.asarray(
    rng.normal(size=lax.dot_general(x, kernel, dims).shape), dtype
  )

  def value_and_gradients(f):
    return jax.value_and_grad(
      lambda x, kernel: (f(x, kernel, dims) * weight).sum(), argnums=(0, 1)
    )(x, kernel)

  ours = value_and_gradients(dense.dot_general)
  expected = value_and_gradients(lax.dot_general)
  for a, b in zip(
    jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True
  ):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_allclose(
      a.astype(jnp.float32),
      b.astype(jnp.float32),
      rtol=tolerance,
      atol=tolerance * float(jnp.abs(b).max()),
    )


def test_other_contractions_are_an_error():
  x, kernel = jnp.zeros((3, 4)), jnp.zeros((3, 4))
  with pytest.raises(ValueError, match=r"dimension_numbers=.*last axes of x"):
    dense.dot_general(x, kernel, (((0,), (0,)), ((), ())))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_in_float32_have_gradients_in_the_dtype_of_the_factors(dtype):
  rng = np.random.default_rng(0)
  shapes = ((2, 3, 8), (5, 8), (2, 3, 5))
  x, table, g = (rng.standard_normal(s).astype(np.float32) for s in shapes)
  short = [jnp.asarray(a, dtype) for a in (x, table)]
  out, pull = jax.vjp(dense.to_float32, *short)
  assert out.dtype == jnp.float32
  gradients = pull(jnp.asarray(g))
  assert [a.dtype for a in gradients] == [jnp.dtype(dtype)] * 2
  tolerance = 1e-5 if dtype == "float32" else 0.06
  expected = (
    np.einsum("bnw,vw->bnv", x, table),
    np.einsum("bnv,vw->bnw", g, table),
    np.einsum("bnv,bnw->vw", g, x),
  )
  for actual, right in zip((out, *gradients), expected, strict=True):
    np.testing.assert_allclose(
      np.asarray(actual, np.float32),
      right,
      atol=tolerance * np.abs(right).max(),
    )


@pytest.mark.parametrize(("model", "constraints"), [(1, 3), (2, 0)])
def test_a_kernel_that_fsdp_splits_is_whole_in_each_product(model, constraints):
  mesh = jax.make_mesh(
    (4 // model, model), ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2
  )
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(6, 12)), jnp.float32)

  def loss(x, kernel):
    return jnp.square(dense.dot_general(x, kernel, numbers(x, kernel))).sum()

  gradients = jax.grad(loss, argnums=(0, 1))
  expected = gradients(x, kernel)
  rows, columns = (
    NamedSharding(mesh, PartitionSpec(*axes))
    for axes in (("fsdp",), (None, "fsdp"))
  )
  with jax.set_mesh(mesh):
    # The product, that of its gradient, and the gradient of the kernel.
    traced = str(jax.make_jaxpr(gradients)(x, kernel))
    assert traced.count("sharding_constraint[") == constraints
    found = jax.jit(gradients, out_shardings=(rows, columns))(
      jax.device_put(x, rows), jax.device_put(kernel, columns)
    )
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
