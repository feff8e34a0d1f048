"""What an attention of LINA's decoder costs, beside one by softmax.

  python -m benchmarks.lina_attention [--json] [--tokens=320,1280,5120,20480]
  python -m benchmarks.lina_attention --timed [--width=1536 --heads=16]

Without `--timed` nothing is run. It counts the multiply-adds of a layer of
5,120 tokens, an image of 1,024 pixels, as the authors do, and has
`benchmarks.kernels_static` estimate bytes and times on a TPU v5e: of the
"attention" between the projections, and of the whole "layer", which has LINA's
gates and convolution. Linear attention is there twice, by our kernel and by the
XLA reference; softmax is our flash kernel.

`--timed` times what implementation="auto" takes on the device that JAX has
here, in bfloat16, linear and softmax in turns; the ratio is the median of the
rounds' ratios. Above one, linear attention is faster.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import flag_checks, static_cases, turns
from models import lina_attention
from tools import work

_LENGTHS = [str(n) for n in static_cases.LINA_TOKENS]
_TOKENS = flags.DEFINE_list(
  "tokens", _LENGTHS, "Lengths; four fifths are the tokens of a square image."
)
_PARTS = flag_checks.define_names(
  "parts", ["attention", "layer"], ["attention", "layer"], "What to compare."
)
_TIMED = flags.DEFINE_bool("timed", False, "Time the device here instead.")
_WIDTH = flags.DEFINE_integer(
  "width", static_cases.LINA_WIDTH, "Channels, if measured.", lower_bound=1
)
_HEADS = flags.DEFINE_integer(
  "heads", static_cases.LINA_HEADS, "Heads, if measured.", lower_bound=1
)

# Billions of multiply-adds by the authors' script (README of the repository of
# arXiv 2601.22630), of 5,120 tokens and 16 heads of 96.
COUNTED_TOKENS = 5120
PUBLISHED = {
  "linear": {
    "projections": 36.24 + 12.08,
    "attention": 1.52,
    "convolution": 0.16,
    "all": 49.99,
  },
  "softmax": {"all": 128.85},
}


def main(argv: Sequence[str]) -> None:
  """Prints rows of counts and estimates, or of times."""
  del argv
  try:
    lengths = [length(text) for text in _TOKENS.value]
  except ValueError as error:
    raise SystemExit(str(error)) from None
  if _TIMED.value:
    sizes = _WIDTH.value, _HEADS.value
    if sizes[0] % sizes[1]:
      raise SystemExit(
        f"width={sizes[0]} must be a multiple of {sizes[1]} heads"
      )
    for part in _PARTS.value:
      for tokens in lengths:
        show(measure(part, tokens, *sizes))
    return
  for kind in lina_attention.ATTENTIONS:
    show(count(kind))
  unknown = set(lengths) - set(static_cases.LINA_TOKENS)
  if unknown:
    raise SystemExit(
      f"tokens={unknown.pop()} is estimated for none but {', '.join(_LENGTHS)}"
    )
  estimated = []
  for tokens in lengths:
    rows = [row for row in estimate(tokens) if row["part"] in _PARTS.value]
    for row in rows:
      show(row)
    estimated += rows
  for part in _PARTS.value:
    for name in ("ratio_kernel", "ratio_reference"):
      ratios = {
        row["tokens"]: row[name] for row in estimated if row["part"] == part
      }
      show({"part": part, "of": name, "crossover_tokens": crossover(ratios)})


def length(text: str) -> int:
  """Returns the number of tokens.

  Raises:
    ValueError: if four fifths of it are not the tokens of a square image.
  """
  tokens = int(text) if text.isdigit() else 0
  if tokens < 1 or 5 * math.isqrt(tokens * 4 // 5) ** 2 != 4 * tokens:
    raise ValueError(
      f"tokens={text!r} must be 5 times a square, as {', '.join(_LENGTHS)}"
    )
  return tokens


def show(row: dict) -> None:
  """Prints a row, for people or as JSON."""
  if turns.JSON.value:
    print(json.dumps(row), flush=True)
    return
  cells = (
    f"{name} {value:,.2f}" if isinstance(value, float) else f"{name} {value}"
    for name, value in row.items()
  )
  print(", ".join(cells), flush=True)


def count(
  kind: str,
  tokens: int = COUNTED_TOKENS,
  width: int = static_cases.LINA_WIDTH,
  heads: int = static_cases.LINA_HEADS,
) -> dict[str, str | int | float | None]:
  """Counts the multiply-adds of our layer from its jaxpr, in billions.

  Args:
    kind: "linear" or "softmax".
    tokens: number of tokens.
    width: channels.
    heads: heads.
  """
  layer = static_cases.lina_layer(kind, tokens, width, heads)
  layer = layer.clone(implementation="xla")
  x = static_cases.array(1, tokens, width)

  def all_of(layer):
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    return work.count_work(layer.apply, variables, x).multiply_adds

  function, arguments = static_cases.lina_attention_call(
    kind, tokens, width, heads
  )
  counted = {
    "attention": work.count_work(
      lambda *arrays: function("xla", *arrays), *arguments
    ).multiply_adds,
    "all": all_of(layer),
  }
  plain = all_of(layer.clone(grid=None))
  counted["convolution"] = counted["all"] - plain
  counted["projections"] = plain - counted["attention"]
  row = {"kind": kind, "tokens": tokens, "width": width, "heads": heads}
  for name in ("projections", "attention", "convolution", "all"):
    row[f"{name}_G"] = counted[name] / 1e9
    row[f"{name}_published"] = PUBLISHED[kind].get(name)
  return row


def estimate(tokens: int) -> list[dict[str, str | int | float]]:
  """Estimates both parts at a length for a TPU v5e, which need not be here."""
  # A process of its own: libtpu reads when it is loaded what it shall write.
  command = [
    *(sys.executable, "-m", "benchmarks.kernels_static", "--json"),
    *("--chips=v5e", "--passes=forward", f"--only=lina {tokens} "),
  ]
  output = subprocess.run(
    command,
    cwd=Path(__file__).parents[1],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  found = {}
  for line in output.splitlines():
    row = json.loads(line)
    found[row["kernel"].removeprefix(f"lina {tokens} ")] = row
  return [
    _compared(part, tokens, found[f"linear {part}"], found[f"softmax {part}"])
    for part in ("attention", "layer")
  ]


def _compared(part: str, tokens: int, linear: dict, softmax: dict) -> dict:
  return {
    "part": part,
    "tokens": tokens,
    "chip": linear["chip"],
    "kernel_us": linear["ours_us"],
    "reference_us": linear["reference_us"],
    "softmax_us": softmax["ours_us"],
    "floor_us": linear["floor_us"],
    "kernel_MB": linear["bytes"] / 1e6,
    "reference_MB": linear["reference_bytes"] / 1e6,
    "softmax_MB": softmax["bytes"] / 1e6,
    "ratio_kernel": softmax["ours_us"] / linear["ours_us"],
    "ratio_reference": softmax["ours_us"] / linear["reference_us"],
  }


def crossover(ratios: dict[int, float]) -> float | None:
  """Returns from which length on linear attention is faster.

  Between lengths the ratio is taken for a power of the length.

  Args:
    ratios: time of softmax over that of linear attention, by length.

  Returns:
    The length; the least one if linear attention is faster at all of them, and
    None if it is not at the greatest.
  """
  lengths = sorted(ratios)
  slower = [n for n in lengths if ratios[n] < 1]
  if not slower:
    return float(lengths[0])
  if slower[-1] == lengths[-1]:
    return None
  below = slower[-1]
  above = lengths[lengths.index(below) + 1]
  logs = {n: math.log(ratios[n]) for n in (below, above)}
  share = -logs[below] / (logs[above] - logs[below])
  return below * (above / below) ** share


def measure(
  part: str, tokens: int, width: int, heads: int
) -> dict[str, str | int | float]:
  """Times linear and softmax attention on the device here, in turns."""
  runs = [
    _run(part, kind, tokens, width, heads) for kind in ("linear", "softmax")
  ]
  for run in runs:
    run()
  rounds = [
    [turns.rate(run, 1, turns.SECONDS.value) for run in runs]
    for _ in range(turns.ROUNDS.value)
  ]
  linear, softmax = zip(*rounds, strict=True)
  device = jax.devices()[0]
  return {
    "part": part,
    "tokens": tokens,
    "width": width,
    "heads": heads,
    "device": device.device_kind,
    "linear_us": 1e6 / statistics.median(linear),
    "softmax_us": 1e6 / statistics.median(softmax),
    "ratio": statistics.median(a / b for a, b in rounds),
  }


def _run(part, kind, tokens, width, heads) -> turns.Run:
  """Returns a function that runs it once and waits for it."""
  if part == "layer":
    layer = static_cases.lina_layer(kind, tokens, width, heads)
    x = static_cases.array(1, tokens, width)
    shapes = (jax.eval_shape(layer.init, jax.random.key(0), x), x)
    function = jax.jit(layer.apply)
  else:
    call, shapes = static_cases.lina_attention_call(kind, tokens, width, heads)
    function = jax.jit(lambda *arrays: call("auto", *arrays))
  leaves, structure = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  arrays = structure.unflatten(
    jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype)
    for key, x in zip(keys, leaves, strict=True)
  )
  return lambda: jax.block_until_ready(function(*arrays))


if __name__ == "__main__":
  app.run(main)
