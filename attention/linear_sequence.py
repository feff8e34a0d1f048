"""Linear attention where devices have parts of a sequence.

What keys leave behind is one memory, whatever their number. Without an order
the memory of all is a sum over devices. In order a device begins with what the
keys of the devices before have left, a scan over the memories of all devices:
these are small, so that each device gathers them and goes through them by
itself.
"""

import functools

import jax.numpy as jnp
from jax import Array, lax

from attention import recurrence
from attention.kernels import dispatch


def parts_of(q, k, corrected: bool) -> tuple[int, str]:
  """Returns how many devices share a sequence, and if it is 1, why.

  Args:
    q: queries [batch, q_len, heads, dim].
    k: keys [batch, kv_len, heads, dim].
    corrected: whether keys correct what others wrote, the delta rule.
  """
  parts = dispatch.sequence_parts()
  if parts == 1:
    return 1, "the mesh has one device for it"
  if corrected:
    return 1, (
      "write_strength is given, and by the delta rule a key depends on all "
      "before it"
    )
  for name, x in (("q", q), ("k", k)):
    if x.shape[1] % parts:
      reason = f"{name} has length {x.shape[1]}, no multiple of {parts}"
      # A token is no work, as where a model is initialised.
      return 1, "" if x.shape[1] == 1 else reason
  return parts, ""


def start_of(length: int) -> Array:
  """Returns the position of the first of so many tokens that a device has."""
  return lax.axis_index(dispatch.SEQUENCE_AXIS) * length


def summed(memory: Array) -> Array:
  """Returns the sum over the devices that share a sequence."""
  return lax.psum(memory, dispatch.SEQUENCE_AXIS)


def before_and_after(
  memory: Array, left: Array | None = None, first: Array | None = None
) -> tuple[Array, Array]:
  """Returns the memory before a device's part, and that after all parts.

  Args:
    memory: what the part leaves behind of nothing, [batch, heads, ...].
    left: the factor of what was there before, which broadcasts to it; None for
      a memory that only grows.
    first: the memory before all parts; None for zeros.
  """
  own = lax.axis_index(dispatch.SEQUENCE_AXIS)
  gather = functools.partial(lax.all_gather, axis_name=dispatch.SEQUENCE_AXIS)
  memories = gather(memory)
  lefts = jnp.ones((len(memories),)) if left is None else gather(left)
  start = jnp.zeros_like(memory) if first is None else first

  def step(carry, part):
    memory, mine = carry
    number, left, added = part
    mine = jnp.where(number == own, memory, mine)
    return (memory * left + added, mine), None

  parts = jnp.arange(len(memories)), lefts, memories
  (after, before), _ = lax.scan(step, (start, start), parts)
  return before, after


def run(phi_q, phi_k, terms, decay, memory, chunk_size):
  """Returns what `recurrence.run` does, each device for its part.

  Arguments are those of `recurrence.run`, for the whole sequence.
  """

  def on_device(phi_q, phi_k, terms, decay, memory):
    nothing = jnp.zeros_like(memory)
    sums, own = recurrence.run(phi_q, phi_k, terms, decay, nothing, chunk_size)
    # [B or 1, N, H or 1, F or 1]
    since_start = jnp.cumsum(decay, axis=1)
    # [B or 1, H or 1, F or 1, 1]
    left = jnp.exp(since_start[:, -1])[..., None]
    before, after = before_and_after(own, left, memory)
    carried = recurrence.dot(
      "bihf,bhfv->bihv", phi_q * jnp.exp(since_start), before
    )
    return sums + carried, after

  return dispatch.per_device(
    on_device,
    (phi_q, phi_k, terms, decay, memory),
    ("bnhf", "bnhf", "bnhv", "bnhf", "bhfv"),
    ("bnhv", "bhfv"),
    sequence="n",
  )


def with_past(sums, q, k, terms, feature_map) -> Array:
  """Adds to sums of a device's part what its queries get of earlier parts.

  Args:
    sums: sum_(j <= i) phi(q_i) . phi(k_j) terms_j of the part [B, N, H, V].
    q: queries of the part [B, N, H, D].
    k: keys.
    terms: [B, N, H, V].
    feature_map: phi.
  """
  phi_q, phi_k = (feature_map(x.astype(jnp.float32)) for x in (q, k))
  own = recurrence.dot("bjhf,bjhv->bhfv", phi_k, terms.astype(jnp.float32))
  before, _ = before_and_after(own)
  return sums + recurrence.dot("bihf,bhfv->bihv", phi_q, before)


def whole(*arrays: Array | None, reason: str) -> list[Array | None]:
  """Gives each device all tokens of arrays [batch, length, ...], and says so.

  Else the compiler would gather them anew for each chunk of a scan.
  """
  if dispatch.sequence_parts() == 1:
    return list(arrays)
  if reason:
    dispatch.say_whole(reason)
  return [None if x is None else dispatch.all_tokens(x) for x in arrays]
