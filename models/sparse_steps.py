"""Sparse steps of decoding, and what a cache keeps for them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from attention import sparse_decoding
from attention.sparse_decoding import Budget
from models import attention_cache, registry

SUMS = "block_sums"
# Where scores are products, and a softmax follows.
_NEEDS = {
  "local": False,
  "key_dim": 0,
  "normalizer": "softmax",
  "scale_by": "constant",
  "attention_soft_cap": 0.0,
}


def budget_of(mixer: Any) -> Budget | None:
  """Returns what a step of a softmax mixer sees, None for dense steps.

  Raises:
    ValueError: if `sparse_decoding` has no such field, or one out of its range,
      or the mixer has other options that steps cannot be sparse with.
  """
  options = mixer.sparse_decoding
  if not options:
    return None
  known = [field.name for field in dataclasses.fields(Budget)]
  for name in options:
    if name not in known:
      raise registry.unknown("option of sparse_decoding", name, known)
  for name, wanted in _NEEDS.items():
    value = getattr(mixer, name)
    if value != wanted:
      raise ValueError(
        f"sparse_decoding is {dict(options)}, and {name} is {value!r}; it "
        f"needs {name}={wanted!r}"
      )
  if mixer.position_encoding == "alibi" or mixer.selective_values:
    raise ValueError(
      "sparse_decoding is given, and so is selective_values or the "
      "position_encoding 'alibi', which go with dense steps alone"
    )
  return Budget(**options)


def empty(budget: Budget | None, keys: jax.Array) -> attention_cache.Cache:
  """Returns what a cache with such `keys` has besides.

  Args:
    budget: of a step.
    keys: [batch, key_heads, slots, dim].
  """
  if budget is None or not budget.needs_sums:
    return {}
  batch, heads, slots, dim = keys.shape
  shape = (batch, heads, budget.blocks_of(slots), dim)
  return {SUMS: jnp.zeros(shape, jnp.float32)}


def extended(
  sums: jax.Array, new: attention_cache.Seen, budget: Budget
) -> jax.Array:
  """Adds the keys of a call to the sums of their blocks.

  The sums are of the segment that the last token of a row is in: what comes
  next sees no other.

  Args:
    sums: float32 [batch, key_heads, blocks, dim].
    new: the keys of this call, [batch, length, key_heads, dim].
    budget: of a step.
  """
  own = (new.segments == new.segments[:, -1:]) & (new.positions >= 0)
  begins = (own & (new.positions == 0)).any(axis=1)
  # A row that has ended keeps still.
  sums = jnp.where(begins[:, None, None, None], 0.0, sums)
  inside = new.positions - budget.sink
  blocks = jnp.where(own & (inside >= 0), inside // budget.block, sums.shape[2])
  rows = jnp.arange(sums.shape[0])[:, None]
  # [batch, length, key_heads, dim]; what is of no block is dropped.
  return sums.at[rows, :, blocks].add(new.keys.astype(jnp.float32), mode="drop")


def attend(
  q: jax.Array,
  cache: attention_cache.Cache,
  positions: jax.Array,
  budget: Budget,
  **options: Any,
) -> jax.Array:
  """Attends with one query a row to the tokens of its segment.

  Args:
    q: [batch, 1, heads, dim].
    cache: with the keys of the query's own token, which is the last.
    positions: of the query, [batch, 1].
    budget: what it sees.
    **options: `scale` and `implementation`, of the attention.
  """
  # Tokens of a segment are neighbours, and the last one is the query's.
  length = positions[:, 0] + 1
  return sparse_decoding.sparse_decoding_attention(
    q,
    cache["keys"],
    cache["values"],
    start=cache["index"] - length,
    length=length,
    budget=budget,
    block_sums=cache.get(SUMS),
    **options,
  )
