"""One call of the flash kernels with its gradients, on what a device has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from attention.kernels import flash_plan as planning


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(plan, kernels, q, k, v, operands, indices, lists):
  """Returns the output in the layout of the kernels, and the log-sum-exp.

  Args:
    plan: a `flash_plan.Plan`.
    kernels: the module with the kernels of a platform.
    q: queries, like all arrays in the layout of the kernels and in whole tiles.
    k: keys.
    v: values.
    operands: the arrays of the modifications and of the mask.
    indices: numbers of the batch elements and of the heads, and where a device
      has a part of the sequence, positions of its first query and key, [2].
    lists: what `lists_of` returns, or nothing.
  """
  return kernels.forward(plan, q, k, v, operands, indices, lists)


def _forward(plan, kernels, q, k, v, operands, indices, lists):
  out, lse = kernels.forward(plan, q, k, v, operands, indices, lists)
  # So that a layer that is computed again need not attend again.
  out, lse = (checkpoint_name(x, planning.ATTENDED) for x in (out, lse))
  return (out, lse), (q, k, v, operands, indices, lists, out, lse)


def _backward(plan, kernels, residuals, cotangents):
  q, k, v, operands, indices, lists, out, lse = residuals
  d_q, d_k, d_v, d_operands = kernels.backward(
    plan,
    *(q, k, v, operands, indices, lists, cotangents[0]),
    *statistics(kernels, out, lse, cotangents),
  )
  return d_q, d_k, d_v, cotangents_of(operands, d_operands), None, None


attend.defvjp(_forward, _backward)


def statistics(kernels, out, lse, cotangents) -> tuple[Array, Array]:
  """Returns what the backward kernels are told of queries.

  Args:
    kernels: the module with the kernels of a platform.
    out: the output, in the layout of the kernels.
    lse: the log-sum-exp, [batch, heads, q_len].
    cotangents: gradients to both.

  Returns:
    The log-sum-exp, and what the gradient of a weight loses, like it.
  """
  d_out, d_lse = cotangents
  # The gradient of a score is p * (d_out v - delta): the softmax takes away
  # the mean of d_out v over the row, and the log-sum-exp adds its own.
  delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
  if kernels.LAYOUT == "bnhd":
    delta = delta.swapaxes(1, 2)
  delta = jnp.where(jnp.isfinite(lse), delta - d_lse, 0.0)
  # A row without keys has weights exp(s - inf) = 0.
  return jnp.where(jnp.isfinite(lse), lse, -planning.MASKED), delta


def cotangents_of(operands, gradients) -> tuple:
  """Returns gradients to all operands as JAX wants them.

  Args:
    operands: the arrays of the modifications and of the mask.
    gradients: those to the first, the modifications', None where there is none.
  """
  gradients = [*gradients, *[None] * (len(operands) - len(gradients))]
  return tuple(
    np.zeros(x.shape, jax.dtypes.float0)
    if not jnp.issubdtype(x.dtype, jnp.floating)
    else jnp.zeros_like(x)
    if gradient is None
    else gradient.reshape(x.shape).astype(x.dtype)
    for gradient, x in zip(gradients, operands, strict=True)
  )


def lists_of(
  states: np.ndarray | Array | None, most: int | None = None
) -> tuple:
  """Returns what kernels walk along: the tiles of each row and each column.

  And all states, as the gradient of a dense bias goes over all tiles. Nothing
  if there are none: all tiles are full. `most` is that of a row, if known.
  """
  if states is None:
    return ()
  by_rows = planning.tile_list(states, most)
  by_columns = planning.tile_list(states.swapaxes(2, 3))
  return by_rows, by_columns, states
