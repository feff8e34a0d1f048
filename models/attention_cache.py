"""Keys and values of earlier tokens, in an array of fixed size.

A cache has `keys` [batch, key_heads, slots, key_dim], `values` [batch,
value_heads, slots, value_dim], `positions` and `segments`, int32 [batch,
slots], with position -1 where nothing is or where padding was, and `index`, an
int32 scalar: how many tokens were written. Token n of all rows is in slot
n % slots, so rows of several lengths are padded on the left, with position -1.
Heads come before slots because that is how products and kernels read them: else
each step would transpose the whole cache.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.layers import Dtype

Cache = dict[str, jax.Array]

# No segment of a token: padding is seen by nobody, and sees nobody.
_PADDING_KEY = -(2**31)
_PADDING_QUERY = _PADDING_KEY + 1
# The axis of slots.
_SLOTS = {"keys": 2, "values": 2, "positions": 1, "segments": 1}


class Seen(NamedTuple):
  """What the queries of a call may see, in any order.

  Attributes:
    keys: [batch, kv_len, key_heads, key_dim].
    values: [batch, kv_len, value_heads, value_dim].
    positions: [batch, kv_len].
    segments: [batch, kv_len].
  """

  keys: jax.Array
  values: jax.Array
  positions: jax.Array
  segments: jax.Array


def empty(
  batch: int,
  slots: int,
  keys: tuple[int, int],
  values: tuple[int, int],
  dtype: Dtype,
) -> Cache:
  """Returns a cache in which nothing was written.

  Args:
    batch: number of rows.
    slots: how many tokens it holds.
    keys: heads of the keys, and channels of each.
    values: those of the values.
    dtype: of keys and values.
  """

  def zeros(heads: int, dim: int) -> jax.Array:
    return jnp.zeros((batch, heads, slots, dim), dtype)

  # Arrays of their own, for each may be donated.
  return {
    "keys": zeros(*keys),
    "values": zeros(*values),
    "positions": jnp.full((batch, slots), -1, jnp.int32),
    "segments": jnp.zeros((batch, slots), jnp.int32),
    "index": jnp.zeros((), jnp.int32),
  }


def extend(cache: Cache, new: Seen, *, ring: bool) -> tuple[Seen, Cache]:
  """Writes the keys of a call.

  Args:
    cache: before it.
    new: the keys of this call.
    ring: whether old tokens make room for new ones.

  Returns:
    (seen, cache): what the queries may see, as their positions say, and the
    cache after.

  Raises:
    ValueError: if the tokens are more than the slots that are left, as far as
      that is known before the program runs.
  """
  length, slots = new.positions.shape[1], cache["positions"].shape[1]
  index = cache["index"]
  if not ring:
    _check_room(index, length, slots)
  old = {name: cache[name] for name in _SLOTS}
  added = {
    name: x.astype(old[name].dtype)
    for name, x in _swapped(new, lambda x: x.swapaxes(1, 2))._asdict().items()
  }
  if length == 1 or not ring:
    kept = _each(
      lambda x, y, axis: lax.dynamic_update_slice_in_dim(
        x, y, index % slots, axis
      ),
      old,
      added,
    )
    seen = kept
  else:
    # The first queries see keys that the last ones leave no room for.
    seen = _each(lambda x, y, axis: jnp.concatenate([x, y], axis), old, added)
    last = np.arange(max(0, length - slots), length)
    kept = _each(
      lambda x, y, axis: _put(x, (index + last) % slots, y, last, axis),
      old,
      added,
    )
  return _swapped(Seen(**seen), _tokens_first), {
    **kept,
    "index": index + length,
  }


def marked(positions: jax.Array, segments: jax.Array) -> tuple[jax.Array, ...]:
  """Returns the segments, as queries' and as keys', with padding apart."""
  padding = positions < 0
  return (
    jnp.where(padding, _PADDING_QUERY, segments),
    jnp.where(padding, _PADDING_KEY, segments),
  )


def _each(f, *arrays: Cache) -> Cache:
  """Calls `f(*arrays, axis)` for each array of a cache that has slots."""
  return {
    name: f(*(own[name] for own in arrays), axis)
    for name, axis in _SLOTS.items()
  }


def _put(x, to, y, at, axis) -> jax.Array:
  """Returns `x` with what `y` has at some places, along an axis."""
  places = (slice(None),) * axis
  return x.at[(*places, to)].set(y[(*places, at)], unique_indices=True)


def _swapped(seen: Seen, swap: Callable[[jax.Array], jax.Array]) -> Seen:
  """Swaps heads and tokens."""
  return seen._replace(keys=swap(seen.keys), values=swap(seen.values))


def _tokens_first(x: jax.Array) -> jax.Array:
  """Turns [batch, heads, slots, head_dim] to [batch, slots, heads, head_dim].

  Where nothing else is asked for, products read the array as it lies. XLA's CPU
  (jax 0.10) has no such products of bfloat16, so that it has to copy.
  """
  x = x.swapaxes(1, 2)
  if x.dtype == jnp.float32:
    return x
  return lax.platform_dependent(
    x, cpu=lax.optimization_barrier, default=lambda x: x
  )


def _check_room(index: jax.Array, length: int, slots: int) -> None:
  written = 0 if isinstance(index, jax.core.Tracer) else int(index)
  if written + length > slots:
    raise ValueError(
      f"tokens: {length} of them after {written} do not fit into a cache of "
      f"{slots}; make it with init_cache(batch, length) and a length of at "
      f"least {written + length}"
    )
