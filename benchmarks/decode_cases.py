"""The steps of decoding that `benchmarks.decode_gpu` times."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import attention
from attention import masks
from attention.sparse_decoding import Budget
from models import attention_cache, sparse_steps
from models.finite_mask import FiniteMask

HEADS, DIM = 32, 64
DTYPE = jnp.bfloat16
BUDGET = Budget(block=16, blocks=64, sink=4, local=16)


class Case(NamedTuple):
  """What is timed.

  Attributes:
    batch: rows.
    context: tokens of each in the last step.
    key_heads: heads of keys.
    value_heads: heads of values.
    budget: what a step sees; None for all.
  """

  batch: int
  context: int
  key_heads: int
  value_heads: int
  budget: Budget | None

  def bytes(self) -> int:
    """Those of keys, values and sums that the last step has to read."""
    width = (self.key_heads + self.value_heads) * DIM * DTYPE.dtype.itemsize
    if self.budget is None:
      return self.batch * self.context * width
    whole = int(self.budget.whole_blocks(jnp.asarray(self.context)))
    left = self.context - whole * self.budget.block
    seen = left + min(whole, self.budget.blocks) * self.budget.block
    sums = whole * self.key_heads * DIM * 4
    return self.batch * (seen * width + sums)


def state(case: Case) -> tuple[jax.Array, attention_cache.Cache]:
  """Returns queries and a full cache of random numbers."""
  keys = (case.key_heads, DIM)
  values = (case.value_heads, DIM)
  empty = attention_cache.empty(case.batch, case.context, keys, values, DTYPE)
  drawn = {
    name: jax.random.normal(jax.random.key(i), empty[name].shape, DTYPE)
    for i, name in enumerate(("keys", "values"))
  }
  places = jnp.arange(case.context, dtype=jnp.int32)[None, :]
  drawn["positions"] = jnp.broadcast_to(places, (case.batch, case.context))
  cache = {**empty, **drawn}
  if case.budget is not None:
    cache |= sparse_steps.empty(case.budget, cache["keys"])
    new = attention_cache.Seen(
      cache["keys"].swapaxes(1, 2),
      cache["values"].swapaxes(1, 2),
      cache["positions"],
      cache["segments"],
    )
    sums = cache[sparse_steps.SUMS]
    cache[sparse_steps.SUMS] = sparse_steps.extended(sums, new, case.budget)
  shape = (case.batch, 1, HEADS, DIM)
  return jax.random.normal(jax.random.key(2), shape, DTYPE), cache


def steps(
  case: Case, count: int, implementation: str
) -> Callable[..., tuple[jax.Array, attention_cache.Cache]]:
  """Returns what takes `count` steps, the last with the whole context."""

  def step(q0: jax.Array, carry: tuple[jax.Array, Any], _: None):
    q, cache = carry
    place = jnp.broadcast_to(cache["index"], (case.batch, 1))
    new = attention_cache.Seen(
      q[:, :, : case.key_heads],
      q[:, :, : case.value_heads],
      place,
      jnp.zeros_like(place),
    )
    sums = cache.get(sparse_steps.SUMS)
    seen, cache = attention_cache.extend(cache, new, ring=False)
    if case.budget is None:
      mask = masks.positions(place, seen.positions)
      mask &= masks.segments(new.segments, seen.segments)
      out = attention.dot_product_attention(
        q,
        seen.keys,
        seen.values,
        mask=FiniteMask(mask),
        implementation=implementation,
      )
    else:
      sums = sparse_steps.extended(sums, new, case.budget)
      cache[sparse_steps.SUMS] = sums
      out = sparse_steps.attend(
        q, cache, place, case.budget, implementation=implementation
      )
    return (q0 + out, cache), None

  def run(q, cache):
    start = jnp.asarray(case.context - count, jnp.int32)
    # Sums of the tokens that come again would grow: they are made for time.
    carry = (q, {**cache, "index": start})
    (q, cache), _ = jax.lax.scan(
      functools.partial(step, q), carry, length=count
    )
    return q, cache

  return run
