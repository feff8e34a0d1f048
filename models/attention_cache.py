"""Keys and values of earlier tokens, in an array of fixed size.

A cache has `keys` and `values` [batch, slots, kv_heads, head_dim], `positions`
and `segments`, int32 [batch, slots], with position -1 where nothing is or where
padding was, and `index`, an int32 scalar: how many tokens were written. Token n
of all rows is in slot n % slots, so rows of several lengths are padded on the
left, with position -1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from models.layers import Dtype

Cache = dict[str, jax.Array]

# No segment of a token: padding is seen by nobody, and sees nobody.
_PADDING_KEY = -(2**31)
_PADDING_QUERY = _PADDING_KEY + 1


class Keys(NamedTuple):
  """What the queries of a call may see, the oldest first.

  Attributes:
    keys: [batch, kv_len, kv_heads, head_dim].
    values: likewise.
    positions: [batch, kv_len].
    segments: [batch, kv_len].
  """

  keys: jax.Array
  values: jax.Array
  positions: jax.Array
  segments: jax.Array


def empty(
  batch: int, slots: int, kv_heads: int, head_dim: int, dtype: Dtype
) -> Cache:
  """Returns a cache in which nothing was written."""
  heads = (batch, slots, kv_heads, head_dim)
  # Arrays of their own, for each may be donated.
  return {
    "keys": jnp.zeros(heads, dtype),
    "values": jnp.zeros(heads, dtype),
    "positions": jnp.full((batch, slots), -1, jnp.int32),
    "segments": jnp.zeros((batch, slots), jnp.int32),
    "index": jnp.zeros((), jnp.int32),
  }


def extend(cache: Cache, new: Keys, *, ring: bool) -> tuple[Keys, Cache]:
  """Writes the keys of a call.

  Args:
    cache: before it.
    new: the keys of this call.
    ring: whether old tokens make room for new ones.

  Returns:
    (seen, cache): what the queries may see, and the cache after. What is seen
    ends with the new keys, but for a single one, which is somewhere in it.

  Raises:
    ValueError: if the tokens are more than the slots that are left, as far as
      that is known before the program runs.
  """
  length, slots = new.keys.shape[1], cache["keys"].shape[1]
  index = cache["index"]
  if not ring:
    _check_room(index, length, slots)
  old = Keys(*(cache[name] for name in Keys._fields))
  after = index + length
  if length > 1 and ring:
    # The oldest token is in the slot that would be written next.
    seen = _joined(Keys(*(jnp.roll(x, -(index % slots), 1) for x in old)), new)
    kept = Keys(*(jnp.roll(x[:, length:], after % slots, 1) for x in seen))
  else:
    kept = Keys(
      *(
        lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), index % slots, 1)
        for x, y in zip(old, new, strict=True)
      )
    )
    seen = kept if length == 1 else _joined(old, new)
  return seen, {**kept._asdict(), "index": after}


def marked(positions: jax.Array, segments: jax.Array) -> tuple[jax.Array, ...]:
  """Returns the segments, as queries' and as keys', with padding apart."""
  padding = positions < 0
  return (
    jnp.where(padding, _PADDING_QUERY, segments),
    jnp.where(padding, _PADDING_KEY, segments),
  )


def _joined(old: Keys, new: Keys) -> Keys:
  return Keys(
    *(
      jnp.concatenate([x, y.astype(x.dtype)], axis=1)
      for x, y in zip(old, new, strict=True)
    )
  )


def _check_room(index: jax.Array, length: int, slots: int) -> None:
  written = 0 if isinstance(index, jax.core.Tracer) else int(index)
  if written + length > slots:
    raise ValueError(
      f"tokens: {length} of them after {written} do not fit into a cache of "
      f"{slots}; make it with init_cache(batch, length) and a length of at "
      f"least {written + length}"
    )
