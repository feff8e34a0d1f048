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
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags

# Before JAX starts: it sets how memory is allocated, and has --smoke, --json,
# --rounds and --seconds.
from benchmarks import kernels_gpu
from benchmarks.decode_cases import BUDGET, Case, state, steps

# Heads of keys and of values.
KV_HEADS = ((16, 16), (4, 16))

_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Rows that are decoded.")
_CONTEXTS = flags.DEFINE_list(
  "contexts",
  [str(1024 * 2**i) for i in range(1, 8)],
  "Tokens of the cache in the last step.",
)
_STEPS = flags.DEFINE_integer("steps", 256, "Of a scan.", lower_bound=1)


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
