"""Few queries against many keys, as in a step of decoding, by flash kernels.

What takes time is to read the keys and values, so that they are read once, from
where they lie. A tile has all query heads that share a key head in its rows: on
a GPU for each key head by itself, and on a TPU for all of them, whose keys lie
side by side there (token after token, each with all heads) and would have to be
copied to come apart; scores of a query with the keys of other heads are then
made and dropped, as the matrix unit has time. Where values have other heads
than keys, the rows on a GPU are the query heads that share both, and several
programs at a time read a head of the fewer; a TPU has no such way. Where there
are too few tiles of queries to keep a chip busy, the keys are split into parts,
each with a copy of the queries, and the parts are joined by their log-sum-exp
(Flash-Decoding, https://pytorch.org/blog/flash-decoding, 2023).

There is no kernel here: rows and columns get another meaning, in
`flash_few_tiles.FewPlan`.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attention.kernels import dispatch
from attention.kernels import flash_plan as planning
from attention.kernels.flash_few_tiles import FewPlan, Packing, sharing
from attention.mask_base import Mask
from attention.scores import ScoreMod
from attention.tiles import Operand

MOST_QUERIES = 8


def takes(
  kernels,
  q: Array,
  k: Array,
  v: Array,
  mods: Sequence[ScoreMod],
  mask: Mask | None,
  weigh: str,
) -> bool:
  """Returns whether a call has few queries, and nothing that stands against it.

  That is an array with a number a score, or a number for each head and key, as
  it would be read where keys were not.
  """
  q_len, k_heads = q.shape[1], k.shape[2]
  if q_len > MOST_QUERIES or weigh == "ones":
    return False
  # Columns are keys and values of the same heads.
  if kernels.HEADS_BESIDE and v.shape[2] != k_heads:
    return False
  beside = k_heads if kernels.HEADS_BESIDE else 1
  if beside * sharing(q, k, v) * q_len > kernels.MOST_FEW_ROWS:
    return False
  if mask is not None and any(mask.tile_multiples()):
    return False
  return not any(
    "r" in o.axes or ("k" in o.axes and ("q" in o.axes or "h" in o.axes))
    for o in planning.all_operands(mods, mask)
  )


def unless_differentiated(
  few: Callable, many: Callable, q, k, v, mods, mask
) -> tuple[Array, Array]:
  """Returns `few(q, k, v, mods, mask)`, or `many` of it if it has gradients."""
  leaves, tree = jax.tree.flatten((q, k, v, tuple(mods), mask))
  # What NumPy holds is known before the program runs, and stays so.
  known = [x if isinstance(x, np.ndarray) else None for x in leaves]

  def of_arrays(function):
    def call(arrays):
      arrays = iter(arrays)
      return function(
        *tree.unflatten(next(arrays) if x is None else x for x in known)
      )

    return call

  attend = jax.custom_vjp(of_arrays(few))
  attend.defvjp(
    functools.partial(jax.vjp, of_arrays(many)),
    lambda pull, cotangents: pull(cotangents),
  )
  return attend([x for x in leaves if not isinstance(x, np.ndarray)])


def few_queries(
  kernels, q, k, v, mods, mask, *, scale: float, weigh: str, target
) -> tuple[Array, Array]:
  """Returns what `flash.flash_attention` does, for what `takes` is True of."""
  batch, q_len, heads, _ = q.shape
  kv_len = k.shape[1]
  tokens = kernels.few_tokens(q, k)
  if kv_len % tokens:
    inside = planning.Inside(None, kv_len)
    mask = inside if mask is None else mask & inside
  states = []
  if mask is not None:
    # [batch or 1, heads or 1, 1, tiles]
    states = [mask.tile_states(q_len, kv_len, q_len, tokens)]
    mask = mask.in_mixed_tile()
  operands = planning.all_operands(mods, mask)
  axes = [o.axes for o in operands]
  of_mods = len(planning.all_operands(mods, None))

  def on_device(q, k, v, batch, heads, *rest):
    arrays = rest[len(states) :]
    packing = Packing.of(kernels, q, k, v, tokens)
    packed = [
      packing.operand(Operand(jnp.asarray(x), a), repeats=i < of_mods)
      for i, (x, a) in enumerate(zip(arrays, axes, strict=True))
    ]
    lists = packing.lists(-(-kv_len // tokens), *rest[: len(states)])
    block_k = tokens * packing.beside
    plan = planning.plan(
      FewPlan,
      q.dtype,
      mods,
      mask,
      packed,
      scale=scale,
      weigh=weigh,
      q_len=q_len,
      kv_len=kv_len,
      block_q=packing.block_q,
      block_k=block_k,
      listed=bool(lists),
      interpret=target.interpret,
      group=packing.group,
      beside=packing.beside,
      parts=packing.parts,
    )
    out, lse = kernels.forward(
      plan,
      packing.queries(q, kernels.LAYOUT),
      packing.keys(k, kernels.LAYOUT),
      packing.keys(v, kernels.LAYOUT),
      [
        planning.padded_operand(o, plan.block_q, plan.keys(i))
        for i, o in enumerate(packed)
      ],
      (batch, heads[:: packing.heads]),
      lists,
    )
    if kernels.LAYOUT == "bnhd":
      out = out.swapaxes(1, 2)
    out, lse = packing.joined(out, lse, weigh)
    return out.astype(q.dtype), lse

  return dispatch.per_device(
    on_device,
    [
      *(q, k, v),
      jnp.arange(batch, dtype=jnp.int32),
      jnp.arange(heads, dtype=jnp.int32),
      *states,
      *(o.array for o in operands),
    ],
    ["bnhd"] * 3 + ["b", "h"] + ["bhij"] * len(states) + axes,
    ["bnhd", "bhn"],
    # As many keys are no work, as where a model is initialised.
    whole=""
    if kv_len <= MOST_QUERIES
    else f"{q_len} queries have keys that each device reads",
  )
