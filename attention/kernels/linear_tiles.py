"""Linear attention on TPUs: the arithmetic of a part of a head.

All is float32 with channels along sublanes and tokens along lanes. Functions
are made of what JAX differentiates, so that the backward pass asks `jax.vjp` in
the kernel; of products it has formulas.

Products of float32 calls are of full precision, six passes of the matrix unit.
In bfloat16 calls an operand is the sum of two bfloat16 numbers (`pieces`), 16
bits of its mantissa, and of the four products of two such the smallest is left
out: an error of 2^-16 where results are rounded by 2^-9. What is a bfloat16
number as it stands, values without a gate and features under `relu`, is one
piece. So no product takes more than three passes.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from attention import features
from attention.kernels.linear_plan import Part, Plan
from attention.kernels.tpu import SUBLANES

# Maps whose features are bfloat16 numbers where the channels are.
_EXACT = (features.identity, features.relu)


def pieces(plan: Plan, x: jax.Array, *, exact: bool = False) -> tuple:
  """Returns what sums to `x` and is multiplied: float32, or bfloat16 twice.

  Args:
    plan: the plan.
    x: float32.
    exact: whether `x` holds bfloat16 numbers in a bfloat16 call.
  """
  if plan.full:
    return (x,)
  high = x.astype(jnp.bfloat16)
  if exact:
    return (high,)
  return high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)


def product(x: tuple, y: tuple, x_axis: int, y_axis: int) -> jax.Array:
  """Contracts an axis of each of two operands in pieces, in float32."""
  precision = None
  if x[0].dtype == jnp.float32:
    precision = lax.Precision.HIGHEST
  products = [
    lax.dot_general(
      a,
      b,
      (((x_axis,), (y_axis,)), ((), ())),
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    for i, a in enumerate(x)
    for j, b in enumerate(y)
    if i + j < 2
  ]
  # The small ones first.
  return functools.reduce(jnp.add, products[::-1])


def map_features(plan: Plan, x: jax.Array, part: Part) -> jax.Array:
  """Returns phi(x) [features, part] of queries; those of padding are phi(0)."""
  return plan.feature_map(part.kept(x))


def map_keys(plan: Plan, part: Part, k, gate) -> jax.Array:
  """Returns what a memory has as columns, [features, part], gated.

  With a row of ones below it if the normalizer reads means.
  """
  mapped = map_features(plan, k, part)
  if gate is not None:
    mapped = mapped * part.kept(gate)
  if not plan.means:
    return mapped
  return jnp.concatenate([mapped, first_row(jnp.ones((1, part.size)))])


def map_values(plan: Plan, part: Part, v, gate) -> jax.Array:
  """Returns what a memory has as rows, [v_dim + 8, part]: values, then a one.

  All zeros for padding, so that it adds nothing whatever its features are.
  """
  v = part.kept(v)
  if gate is not None:
    v = v * part.kept(gate)
  return jnp.concatenate([v, first_row(part.kept(jnp.ones((1, part.size))))])


def key_pieces(plan: Plan, mapped, gate) -> tuple:
  exact = gate is None and plan.feature_map in _EXACT
  return pieces(plan, mapped, exact=exact)


def query_pieces(plan: Plan, mapped) -> tuple:
  return key_pieces(plan, mapped, None)


def value_pieces(plan: Plan, mapped, gate) -> tuple:
  return pieces(plan, mapped, exact=gate is None)


def first_row(x: jax.Array) -> jax.Array:
  """Returns a row [1, n] and seven of zeros below it."""
  row = lax.broadcasted_iota(jnp.int32, (SUBLANES, x.shape[1]), 0)
  return jnp.where(row == 0, x, 0.0)


def normalize(plan: Plan, count: jax.Array) -> Callable:
  """Returns the function of sums, weight and mean that gives the output.

  Args:
    plan: the plan.
    count: how many keys a query sees, [1, part] or [1, 1], float32.

  Returns:
    (sums [v_dim, part], weight [1, part], mean [v_dim, 1]) -> [v_dim, part].
  """

  def function(sums, weight, mean):
    weight = jnp.where(count == 0, 1.0, weight)
    return plan.normalizer.normalize(
      sums, weight, jnp.maximum(count, 1.0), lambda: mean, plan.dim
    )

  return function


def of_rows(feature_map: Callable) -> Callable:
  """Returns the map for channels along the first axis."""
  if feature_map is features.softmax:
    return _softmax
  return _taylor if feature_map is features.taylor else feature_map


def _softmax(x):
  return features.softmax(x, axis=0)


def _taylor(x):
  """`features.taylor` in another order, as products of rows.

  [f, n] -> [f + f * f + 8, n]: no matrix product. The one comes last, in a
  register of its own.
  """
  f = len(x)
  row = lax.broadcasted_iota(jnp.int32, x.shape, 0)
  scaled = x * (0.5**0.5 * f**-0.5)
  products = [
    scaled * jnp.where(row == i, x, 0.0).sum(0, keepdims=True) for i in range(f)
  ]
  one = first_row(jnp.ones((1, x.shape[1])))
  return jnp.concatenate([x * f**-0.25, *products, one])
