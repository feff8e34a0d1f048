"""Flash attention where devices have parts of a sequence.

Each device has the queries of its part, and its share of the keys and values.
Where these are small as a whole, each gathers them once. Where they are large,
they go round: a device attends to what it has while it is sent on to the next,
and joins what it gets by the log-sum-exp (Ring Attention, arXiv 2310.01889).
Kernels are told the positions of the first query and key they have, so that
masks and score modifications see those of the whole call; the tiles that a mask
leaves are looked up in the list of all tiles.

There is no kernel here: the same ones run on parts.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from attention.kernels import dispatch, flash_call
from attention.kernels import flash_plan as planning
from attention.mask_base import EMPTY, Mask

# The most bytes of all keys and values of a device's rows and heads that it
# holds at once. The backward pass keeps them too, for each layer.
GATHERED_BYTES = 64 * 2**20


def one_part(x: Any, parts: int) -> jax.ShapeDtypeStruct:
  """Returns the shape of what one of so many devices has of [B, N, H, D]."""
  shape = (x.shape[0], x.shape[1] // parts, *x.shape[2:])
  return jax.ShapeDtypeStruct(shape, x.dtype)


def parts_of(kernels, q: Any, k: Any, mask: Mask | None) -> tuple[int, str]:
  """Returns how many devices share a sequence, and if it is 1, why.

  Args:
    kernels: the module with the kernels of a platform.
    q: queries [batch, q_len, heads, dim], or their shape.
    k: keys, likewise.
    mask: which keys are seen, or None.
  """
  parts = dispatch.sequence_parts()
  if parts == 1:
    return 1, "the mesh has one device for it"
  blocks = kernels.block_sizes(one_part(q, parts), one_part(k, parts), mask)
  for name, x, block in zip("qk", (q, k), blocks, strict=True):
    multiple = parts * max(block, 1)
    if x.shape[1] % multiple:
      return 1, (
        f"{name} has length {x.shape[1]}, and {parts} parts in whole tiles of "
        f"{max(block, 1)} need a multiple of {multiple}"
      )
  return parts, ""


def attend(
  plan: planning.Plan,
  kernels,
  q: Array,
  k: Array,
  v: Array,
  operands: list[Array],
  states: np.ndarray | Array | None,
  parts: int,
) -> tuple[Array, Array]:
  """Returns what `flash.flash_attention` does.

  Args:
    plan: what is known of the whole call, with blocks that divide a part.
    kernels: the module with the kernels of a platform.
    q: [batch, q_len, heads, dim].
    k: [batch, kv_len, k_heads, dim].
    v: [batch, kv_len, v_heads, v_dim].
    operands: the arrays of the modifications and of the mask.
    states: of all tiles, [batch or 1, heads or 1, rows, columns], or None.
    parts: how many devices share a sequence.
  """
  batch, _, heads, _ = q.shape
  lists = [] if states is None else [jnp.asarray(states)]

  def on_device(q, k, v, batch, heads, *rest):
    part = _Part(plan, kernels, parts)
    given = _Given(
      q,
      k,
      v,
      rest[len(lists) :],
      (batch, heads),
      rest[0] if lists else None,
    )
    own_bytes = sum(x.size * x.dtype.itemsize for x in (k, v))
    if own_bytes * parts <= GATHERED_BYTES:
      return _gathered(part, given)
    return _ring(part, *given)

  return dispatch.per_device(
    on_device,
    [
      *(q, k, v),
      jnp.arange(batch, dtype=jnp.int32),
      jnp.arange(heads, dtype=jnp.int32),
      *lists,
      *operands,
    ],
    # "K" are keys that every device has all of: what belongs to them is small.
    ["bqhd", "bkhd", "bkhd", "b", "h"]
    + ["bhqK"] * len(lists)
    + [axes.replace("k", "K") for axes in plan.axes],
    ["bqhd", "bhq"],
    sequence="qk",
  )


class _Given(NamedTuple):
  """What a device has of a call.

  Attributes:
    q, k, v: [batch, part of the length, heads, dim].
    operands: with the queries of the part, and all keys.
    numbers: of the batch elements and of the heads.
    states: of the tiles of the part's queries and all keys, or None.
  """

  q: Any
  k: Any
  v: Any
  operands: Any
  numbers: Any
  states: Any


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
  """What all devices know of a call.

  Attributes:
    plan: the plan of the whole call.
    kernels: the module with the kernels of a platform.
    parts: how many devices share a sequence.
  """

  plan: planning.Plan
  kernels: Any
  parts: int

  def arranged(self, *arrays: Array) -> list[Array]:
    """[batch, length, heads, dim] to the layout of the kernels, and back."""
    if self.kernels.LAYOUT == "bnhd":
      return list(arrays)
    return [x.swapaxes(1, 2) for x in arrays]

  def source(self, turn: int | Array) -> Array:
    """Returns whose keys a device has after so many turns of the ring."""
    return (lax.axis_index(dispatch.SEQUENCE_AXIS) - turn) % self.parts

  def call(self, given: _Given, source: Array) -> tuple:
    """Returns operands, indices and states for the keys of a device."""
    q_len, kv_len = given.q.shape[1], given.k.shape[1]
    own = lax.axis_index(dispatch.SEQUENCE_AXIS)
    first = jnp.stack([own * q_len, source * kv_len]).astype(jnp.int32)
    operands = tuple(
      _of_part(x, axes.find("k"), source, kv_len)
      for x, axes in zip(given.operands, self.plan.axes, strict=True)
    )
    tiles = kv_len // self.plan.block_k
    states = given.states
    if states is not None:
      states = _of_part(states, 3, source, tiles)
    return operands, (*given.numbers, first), states

  def passed_on(self, *arrays: Array) -> list[Array]:
    """Sends arrays to the next device, and returns those of the one before."""
    ring = [(i, (i + 1) % self.parts) for i in range(self.parts)]
    return [lax.ppermute(x, dispatch.SEQUENCE_AXIS, ring) for x in arrays]

  def joined(self, total: tuple, more: tuple) -> tuple[Array, Array]:
    """Joins output in float32 and log-sum-exp with those of more keys."""
    (out, lse), (more_out, more_lse) = total, more
    more_out = more_out.astype(jnp.float32)
    if self.plan.weigh != "softmax":
      return out + more_out, lse
    whole = jnp.logaddexp(lse, more_lse)
    # Nobody saw a key: zero, not exp(-inf + inf).
    shares = (
      jnp.where(whole == -jnp.inf, 0.0, jnp.exp(x - whole))
      for x in (lse, more_lse)
    )
    if self.kernels.LAYOUT == "bnhd":
      shares = (x.swapaxes(1, 2) for x in shares)
    share, more_share = (x[..., None] for x in shares)
    return out * share + more_out * more_share, whole


def _of_part(x: Array, axis: int, part: Array, length: int) -> Array:
  """Returns a part of an axis, all of the array if the axis is -1."""
  if axis < 0:
    return x
  return lax.dynamic_slice_in_dim(x, part * length, length, axis)


def _unless_empty(states: Array | None, run, nothing):
  """Calls `run`, or `nothing` where all tiles are empty, as in the future."""
  if states is None:
    return run()
  return lax.cond(jnp.any(states != EMPTY), run, nothing)


def _gathered(part: _Part, given: _Given) -> tuple[Array, Array]:
  """Attends to all keys and values at once."""
  k, v = (
    lax.all_gather(x, dispatch.SEQUENCE_AXIS, axis=1, tiled=True)
    for x in (given.k, given.v)
  )
  given = given._replace(k=k, v=v)
  operands, indices, states = part.call(given, jnp.int32(0))
  lists = flash_call.lists_of(states)
  out, lse = flash_call.attend(
    part.plan,
    part.kernels,
    *part.arranged(given.q, k, v),
    operands,
    indices,
    lists,
  )
  return *part.arranged(out), lse


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(part: _Part, *given) -> tuple[Array, Array]:
  """Attends to the keys and values of one device after the other."""
  given = _Given(*given)
  q, k, v = part.arranged(*given[:3])
  plan, kernels = part.plan, part.kernels
  softmax = plan.weigh == "softmax"
  shape = (*q.shape[:-1], v.shape[-1])
  batch, q_len, heads, _ = given.q.shape
  none = jnp.full((batch, heads, q_len), -jnp.inf if softmax else 0.0)
  none = jnp.zeros(shape, q.dtype), none

  def attended(turn, total, k, v):
    operands, indices, states = part.call(given, part.source(turn))
    lists = flash_call.lists_of(states)
    more = _unless_empty(
      states,
      lambda: tuple(kernels.forward(plan, q, k, v, operands, indices, lists)),
      lambda: none,
    )
    return part.joined(total, more)

  def step(carry, turn):
    total, k, v = carry
    # Nothing here waits for what is sent.
    return (attended(turn, total, k, v), *part.passed_on(k, v)), None

  first = none[0].astype(jnp.float32), none[1]
  carry, _ = lax.scan(step, (first, k, v), jnp.arange(part.parts - 1))
  out, lse = attended(part.parts - 1, *carry)
  return *part.arranged(out.astype(q.dtype)), lse


def _ring_forward(part, *given):
  out, lse = _ring(part, *given)
  # As on one device, where layers are computed again.
  out, lse = (checkpoint_name(x, planning.ATTENDED) for x in (out, lse))
  return (out, lse), (given, out, lse)


def _ring_backward(part, residuals, cotangents):
  """Sends keys and values round again, their gradients one step behind."""
  given, out, lse = residuals
  given, plan = _Given(*given), part.plan
  q, k, v, out, d_out = part.arranged(*given[:3], out, cotangents[0])
  of_queries = flash_call.statistics(
    part.kernels, out, lse, (d_out, cotangents[1])
  )

  def gradients(turn, k, v):
    """Those to queries, keys, values and operands, of what is here."""
    source = part.source(turn)
    operands, indices, states = part.call(given, source)
    lists = flash_call.lists_of(states)

    def run():
      *d_qkv, d_operands = part.kernels.backward(
        plan, q, k, v, operands, indices, lists, d_out, *of_queries
      )
      d_operands = [
        None if d is None else d.reshape(x.shape).astype(jnp.float32)
        for d, x in zip(d_operands, operands, strict=False)
      ]
      return [x.astype(jnp.float32) for x in d_qkv], d_operands

    def nothing():
      return jax.tree.map(jnp.zeros_like, jax.eval_shape(run))

    (d_q, *d_kv), d_operands = _unless_empty(states, run, nothing)
    return d_q, d_kv, _to_whole(part, given, d_operands, source)

  def step(carry, turn):
    (d_q, d_operands), d_kv, k, v = carry
    sent = part.passed_on(k, v)
    arrived = part.passed_on(*d_kv)
    more_q, d_kv, more_operands = gradients(turn, k, v)
    sums = jax.tree.map(jnp.add, (d_q, d_operands), (more_q, more_operands))
    return (sums, _added(arrived, d_kv), *sent), None

  first = part.passed_on(k, v)
  d_q, d_kv, d_operands = gradients(0, k, v)
  carry = (d_q, d_operands), d_kv, *first
  carry, _ = lax.scan(step, carry, jnp.arange(1, part.parts))
  (d_q, d_operands), d_kv = carry[:2]
  # One more step, and they are where their keys came from.
  d_q, d_k, d_v = part.arranged(d_q, *part.passed_on(*d_kv))
  return (
    d_q.astype(q.dtype),
    d_k.astype(k.dtype),
    d_v.astype(v.dtype),
    flash_call.cotangents_of(given.operands, d_operands),
    None,
    None,
  )


_ring.defvjp(_ring_forward, _ring_backward)


def _added(a, b) -> list[Array]:
  return [x + y for x, y in zip(a, b, strict=True)]


def _to_whole(part, given, gradients, source) -> list[Array | None]:
  """Puts gradients to operands of some keys among zeros for the others."""
  whole = []
  for x, axes, d in zip(
    given.operands, part.plan.axes, gradients, strict=False
  ):
    axis = axes.find("k")
    if d is not None and axis >= 0:
      start = [0] * d.ndim
      start[axis] = source * d.shape[axis]
      d = lax.dynamic_update_slice(jnp.zeros(x.shape, d.dtype), d, start)
    whole.append(d)
  return whole
