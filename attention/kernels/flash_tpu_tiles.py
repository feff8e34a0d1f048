"""What the flash kernels on TPU do with one tile of scores.

A tile is [rows, columns]: queries in rows where a kernel goes along queries,
keys in rows where it goes along keys. Score modifications and masks are
elementwise and never notice.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attention.kernels.flash_plan import Plan
from attention.kernels.tpu import LANES
from attention.tiles import Tile


def scaled(plan: Plan, a: Array, b: Array) -> Array:
  """Returns scale * a b^T in float32."""
  return product_transposed(plan, a, b) * plan.scale


def product_transposed(plan: Plan, a: Array, b: Array) -> Array:
  """Returns a b^T in float32."""
  return jax.lax.dot_general(
    a,
    b,
    (((1,), (1,)), ((), ())),
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def product(plan: Plan, a: Array, b: Array) -> Array:
  """Returns a b in float32, `a` in the dtype of `b`.

  So weights are rounded to bfloat16 beside bfloat16 values: that is what the
  matrix unit takes in one pass.
  """
  return jnp.dot(
    a.astype(b.dtype),
    b,
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def wide(column: Array, width: int) -> Array:
  """Repeats a column, which is the same in each of LANES lanes.

  [rows, LANES] -> [rows, width]. A statistic of a row is kept so because a
  register of it lines up with one of scores: a true column [rows, 1] would have
  to be spread over the lanes at each use.
  """
  repeats = -(-width // LANES)
  return jnp.concatenate([column] * repeats, axis=1)[:, :width]


def as_column(row: Array) -> Array:
  """[1, block] -> [block, 1]

  Through a square of registers, because only those are transposed in one go.
  """
  return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def seen_only(visible: Array, v: Array) -> Array:
  """Returns values with zeros for those that no query sees: they may be NaN.

  [rows, keys] booleans and [keys, v_dim] -> [keys, v_dim]
  """
  seen = jnp.max(visible.astype(jnp.float32), axis=0, keepdims=True)
  # In float32, as a register of bfloat16 has other rows than one of the mask.
  kept = jnp.where(as_column(seen) > 0, v.astype(jnp.float32), 0.0)
  return kept.astype(v.dtype)


def modify_with_gradient(
  plan: Plan, raw: Array, tile: Tile, values: Sequence[Array]
) -> tuple[Array, Callable]:
  """Returns the modified scores and their pullback.

  The gradients of the values come for each score, like `raw`: they are summed
  where it is known which kernel sums what. Integers have none.
  """
  number = plan.mod_operands
  floating = [
    i for i in range(number) if jnp.issubdtype(values[i].dtype, jnp.floating)
  ]
  # Spread over the tile before JAX differentiates, or it would sum over what
  # the value is shared by, and in its own dtype.
  spread = [
    jnp.broadcast_to(values[i].astype(jnp.float32), raw.shape) for i in floating
  ]

  def modified(raw, *spread):
    full = list(values)
    for i, value in zip(floating, spread, strict=True):
      full[i] = value
    return plan.modified(raw, tile, full)

  score, pull = jax.vjp(modified, raw, *spread)

  def pullback(gradient):
    d_raw, *d_spread = pull(gradient)
    d_values = [None] * number
    for i, d in zip(floating, d_spread, strict=True):
      d_values[i] = d
    return d_raw, d_values

  return score, pullback


def score_gradient(
  plan: Plan,
  score: Array,
  pull: Callable,
  visible: Array | None,
  d_weight: Array,
  lse: Array,
  delta: Array,
):
  """Returns the weights and the gradients of the raw score and the values.

  Args:
    plan: the plan.
    score: modified scores of a tile.
    pull: takes the gradient of `score` to those of what it was made of.
    visible: the mask of the tile, or None.
    d_weight: gradients of the weights.
    lse: log-sum-exp of the queries, broadcastable; large and positive for rows
      that see nothing, whose weights are then zero.
    delta: what d_weight loses, broadcastable.
  """
  if plan.weigh == "sigmoid":
    weights = jax.nn.sigmoid(score)
    d_score = weights * (1 - weights) * d_weight
  else:
    weights = jnp.exp(score - lse)
    d_score = weights * (d_weight - delta)
  if visible is None:
    return weights, pull(d_score)
  # A masked score may be anything, also NaN: chosen, never multiplied by zero.
  weights = jnp.where(visible, weights, 0.0)
  d_raw, d_values = pull(jnp.where(visible, d_score, 0.0))
  if plan.mods:
    # Once more, as the slope of a modification may be infinite there.
    d_raw = jnp.where(visible, d_raw, 0.0)
    d_values = [
      None if d is None else jnp.where(visible, d, 0.0) for d in d_values
    ]
  return weights, (d_raw, d_values)
