"""Feature maps of linear attention: phi, with phi(q) . phi(k) as the weight.

Each maps [..., dim] to [..., features] and is meant for float32. They are made
of operations that Pallas lowers too, so that kernels apply them to tiles in
VMEM and the features never reach HBM.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from attention import checks


def identity(x: Array) -> Array:
  """Returns `x`: the features were made before."""
  return x


def relu(x: Array) -> Array:
  """Returns max(x, 0), the map of InLine; its gradient at 0 is 0."""
  return jnp.where(x > 0, x, 0.0)


def relu_epsilon(x: Array) -> Array:
  """Returns max(x, 0) + 1e-6, the map of LINA (arXiv 2601.22630)."""
  return relu(x) + 1e-6


def elu_plus_one(x: Array) -> Array:
  """Returns ELU(x) + 1 > 0, the map of LinFusion (arXiv 2409.02097).

  x + 1 above zero and exp(x) below; the exponent never sees a positive number,
  whose exponential could be infinite and make the gradient NaN.
  """
  return jnp.where(x > 0, x + 1.0, jnp.exp(jnp.minimum(x, 0.0)))


def sigmoid(x: Array) -> Array:
  """Returns 1 / (1 + exp(-x)), the map of Flowformer (arXiv 2202.06258)."""
  return jax.nn.sigmoid(x)


def softmax(x: Array, *, axis: int = -1) -> Array:
  """Returns the softmax of `x` over its last axis, or another one."""
  x = jnp.exp(x - jnp.max(x, axis=axis, keepdims=True))
  return x / jnp.sum(x, axis=axis, keepdims=True)


def taylor(x: Array) -> Array:
  """Returns the second-order Taylor features of exp, the map of Based.

  With f = dim: [1, x / f^(1/4), vec(x x^T) / (sqrt(2) f^(1/2))], so that
  phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(f) (arXiv 2402.18668).
  Each feature is a product of two affine functions of x, which
  selects columns by matrix products: no lane is moved, as a kernel needs.

  Args:
    x: [..., f].

  Returns:
    [..., 1 + f + f * f].
  """
  # Columns are selected in the dtype of `x`: integers would make them zeros.
  checks.floating("x", x)
  f = x.shape[-1]
  shape = (f, 1 + f + f * f)
  row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  column = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  pair = column - (1 + f)
  first = (pair >= row * f) & (pair < (row + 1) * f)
  second = (pair >= 0) & (jax.lax.rem(pair + f * f, f) == row)
  linear = column == row + 1
  left = jnp.where(first, 0.5**0.5 * f**-0.5, jnp.where(linear, f**-0.25, 0.0))
  right = jnp.where(second, 1.0, 0.0)
  lane = jax.lax.broadcasted_iota(
    jnp.int32, (1,) * (x.ndim - 1) + shape[1:], x.ndim - 1
  )
  return (_select(x, left) + jnp.where(lane == 0, 1.0, 0.0)) * (
    _select(x, right) + jnp.where(lane <= f, 1.0, 0.0)
  )


def taylor_compact(x: Array) -> Array:
  """Returns `taylor` without its repeated products: 1 + f + f (f + 1) / 2.

  Diagonal products x_i^2 / (sqrt(2) f^(1/2)), others x_i x_j / f^(1/2), i < j:
  the same phi(q) . phi(k) from 153 features instead of 273 at f = 16.
  """
  f = x.shape[-1]
  pairs = [(i, j) for i in range(f) for j in range(i, f)]
  i = jnp.array([a for a, _ in pairs])
  j = jnp.array([b for _, b in pairs])
  weight = jnp.where(i == j, math.sqrt(0.5), 1.0) * f**-0.5
  weight = weight.reshape((1,) * (x.ndim - 1) + (-1,))
  products = x[..., i] * x[..., j] * weight
  return jnp.concatenate(
    [jnp.ones_like(x[..., :1]), x * f**-0.25, products], -1
  )


def _select(x: Array, matrix: Array) -> Array:
  return jax.lax.dot_general(
    x,
    matrix.astype(x.dtype),
    (((x.ndim - 1,), (0,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32 if x.dtype != jnp.float64 else x.dtype,
  )
