"""Time of a decoding step of attention on one GPU, by the tokens of its cache.

  python -m benchmarks.decode_gpu [--json] [--batches=1,8]

Queries of 32 heads of 64 channels, as Sigma-1.5B's (arXiv 2501.13629), with 16
heads of keys and values or with 4 and 16; dense, and to 64 blocks of 16 tokens
that are chosen by their mean keys (Kinetics, arXiv 2506.05333). What is timed
is what mixers do between their projections, many steps in one scan: keys and
values of a token go into the cache, and its queries attend. A scan's share of
bringing the cache into the kernel's layout, once, and back is in the time.

A row has the time of a step, the bytes of keys, values and sums of blocks that
it has to read, what share that is of the memory's peak, and how many times as
fast it is as dense attention with 16 heads of each.

`--smoke` runs tiny shapes on whatever there is; its times mean nothing.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

import attention
from attention import masks
from attention.sparse_decoding import Budget

# Before JAX starts: it sets how memory is allocated, and has --smoke, --json,
# --rounds and --seconds.
from benchmarks import kernels_gpu
from models import attention_cache, sparse_steps
from models.finite_mask import FiniteMask

HEADS, DIM = 32, 64
DTYPE = jnp.bfloat16
# Heads of keys and of values.
KV_HEADS = ((16, 16), (4, 16))
BUDGET = Budget(block=16, blocks=64, sink=4, local=16)

_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Rows that are decoded.")
_CONTEXTS = flags.DEFINE_list(
  "contexts",
  [str(1024 * 2**i) for i in range(1, 8)],
  "Tokens of the cache in the last step.",
)
_STEPS = flags.DEFINE_integer("steps", 256, "Of a scan.", lower_bound=1)


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


def measure(case: Case, implementation: str, count: int) -> dict[str, Any]:
  """Times a case."""
  run = jax.jit(steps(case, count, implementation), donate_argnums=1)
  q, cache = jax.jit(functools.partial(state, case))()

  def again(_: int) -> jax.Array:
    nonlocal cache
    out, cache = run(q, cache)
    return out

  seconds = kernels_gpu.median_time(again, jax.block_until_ready) / count
  peaks = [
    peak
    for name, (_, peak) in kernels_gpu.PEAKS.items()
    if name in jax.devices()[0].device_kind
  ]
  rate = case.bytes() / seconds
  return {
    "chip": jax.devices()[0].device_kind,
    "batch": case.batch,
    "context": case.context,
    "key_heads": case.key_heads,
    "value_heads": case.value_heads,
    "attention": "dense" if case.budget is None else "blocks",
    "step_us": seconds * 1e6,
    "read_bytes": case.bytes(),
    "gbyte_per_s": rate / 1e9,
    "share_of_peak": rate / peaks[0] if peaks else None,
  }


def describe(row: dict[str, Any]) -> str:
  """One line for people."""
  share = row["share_of_peak"]
  return (
    f"batch {row['batch']}, {row['context']} tokens, {row['key_heads']} and "
    f"{row['value_heads']} heads, {row['attention']}: {row['step_us']:.1f} us, "
    f"{row['read_bytes'] / 1e6:.1f} MB, {row['gbyte_per_s']:.0f} GB/s"
    + ("" if share is None else f", {share:.0%} of the peak")
    + f", {row['speedup']:.2f} times as fast as 16 and 16, dense"
  )


def main(argv: Sequence[str]) -> None:
  """Prints a row for each case."""
  del argv
  smoke = flags.FLAGS.smoke
  if not smoke and jax.default_backend() != "gpu":
    raise SystemExit(
      "benchmarks.decode_gpu needs an NVIDIA GPU and jax[cuda], and JAX runs "
      f"on {jax.default_backend()!r}; --smoke proves the script without one"
    )
  batches, contexts = (
    [int(n) for n in flag.value] for flag in (_BATCHES, _CONTEXTS)
  )
  count = _STEPS.value
  if smoke:
    batches, contexts, count = [2], [64], 2
  for context in contexts:
    if context < count:
      raise SystemExit(f"contexts={context} must be at least steps={count}")
  implementation = "xla" if smoke else "gpu"
  for batch in batches:
    for context in contexts:
      dense = None
      for budget in (None, BUDGET):
        for heads in KV_HEADS:
          case = Case(batch, context, *heads, budget)
          row = measure(case, implementation, count)
          dense = dense or row["step_us"]
          row["speedup"] = dense / row["step_us"]
          text = json.dumps(row) if flags.FLAGS.json else describe(row)
          print(text, flush=True)


if __name__ == "__main__":
  app.run(main)
