"""Prints mixers of language models beside each other.

  python -m tools.mixers_table [--report=docs/mixers.md]

Parameters, bytes of the cache and multiply-adds are of one layer of width 1024
with 16 heads in bfloat16, the latter two a token of a row of so many tokens. A
pattern of several mixers has their mean. Multiply-adds are counted from the
jaxpr, where a softmax multiplies all queries with all keys, and then for the
keys that the mask lets a token see, as kernels do; triangular solves of the
delta rule are none of them. Fused is what has a Pallas kernel for the platform,
as the dispatch says. Measured columns come of the studies in
docs/results/language.jsonl, and are empty where there are none.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.extend import core

from configs.sequences import RECURRENT_MIXERS
from models.transformer import Transformer
from tools import study, work

LENGTHS = (1024, 8192, 65536)
NAMES = ("1k", "8k", "64k")
MARK = "mixers"
_LINES = epath.Path(__file__).parents[1] / "docs" / "results" / "language.jsonl"
_WINDOW = 32
_BASED = {"feature_map": "taylor", "feature_dim": 8, "epsilon": 1e-12}
# Fields of a transformer, by the name of a row. Windows and widths of Taylor
# features are those of the study; in the table windows are 32 times as wide, as
# the rows are longer, and features are of 16 channels, as BASED has them.
ROWS: dict[str, dict[str, Any]] = {
  "full": {},
  "full with sink": {
    "mixer_options": {"full": {"normalizer": "softmax_with_sink"}}
  },
  "gated": {"output_gate": "elementwise"},
  "affine": {
    "mixer_options": {
      "full": {"normalizer": "affine", "normalizer_options": {"length": 128}}
    }
  },
  "LSSAR, p = 15": {
    "mixer_options": {
      "full": {
        "qk_norm": "unit",
        "scale_by": "log_length",
        "normalizer": "reweighted_softplus",
        "normalizer_options": {"power": 15.0},
      }
    }
  },
  "sliding": {"mixers": ("sliding",), "window": _WINDOW},
  "linear, elu": {"mixers": ("linear",)},
  "linear, Taylor": {
    "mixers": ("linear",),
    "mixer_options": {"linear": _BASED},
  },
  "linear, decay by data": {
    "mixers": ("linear",),
    "mixer_options": {"linear": {"decay": "data"}},
  },
  "delta": {
    "mixers": ("linear",),
    "mixer_options": {"linear": RECURRENT_MIXERS["DeltaNet"]},
  },
  "gated delta": {
    "mixers": ("linear",),
    "mixer_options": {"linear": RECURRENT_MIXERS["gated DeltaNet"]},
  },
  "BASED": {
    "mixers": ("convolution", "linear", "convolution", "sliding"),
    "window": _WINDOW,
    "mixer_options": {"linear": _BASED},
  },
}
# Rows of other studies that have the same mixer.
_RECALL = {
  "full": "softmax",
  "sliding": "sliding 32",
  "linear, elu": "elu",
  "linear, Taylor": "taylor 16",
}
_LONGER = {"full": "softmax", "LSSAR, p = 15": "LSSAR, p = 15"}


def model(row: str, mixers: tuple[str, ...] | None = None) -> Transformer:
  """One layer of each mixer of a row, or of `mixers`, and nothing else."""
  fields = dict(ROWS[row])
  mixers = mixers or fields.get("mixers", ("full",))
  if "window" in fields:
    fields["window"] *= 32
  options = dict(fields.get("mixer_options", {}))
  if options.get("linear") == _BASED:
    options["linear"] = {**_BASED, "feature_dim": 16}
  fields["mixer_options"] = {n: options[n] for n in mixers if n in options}
  fields |= {"mixers": mixers, "depth": len(mixers)}
  return Transformer(
    width=1024,
    heads=16,
    mlp="none",
    implementation="xla",
    dtype=jnp.bfloat16,
    **fields,
  )


def parameters(row: str) -> int:
  """Of a layer's mixer."""
  made = model(row)
  token = jnp.zeros((1, 1), jnp.int32)
  params = jax.eval_shape(made.init, jax.random.key(0), token)["params"]
  mixers = [params[f"layer_{i}"]["mixer"] for i in range(made.depth)]
  return sum(x.size for x in jax.tree.leaves(mixers)) // made.depth


def cache_bytes(row: str, length: int) -> float:
  """Of a layer's cache for a row of `length` tokens, a token."""
  made = model(row)
  cache = jax.eval_shape(lambda: made.init_cache(1, length))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  return size / made.depth / length


def multiply_adds(row: str) -> dict[int, float]:
  """Of a layer, a token, by the length of its row."""
  made = model(row)
  short, long = (_counted(made, n) / n for n in LENGTHS[:1] + (2048,))
  # What grows with the length is products of queries with keys and values.
  each = (long - short) / 1024
  fixed = short - 1024 * each
  return {
    n: (fixed + each * _seen(made.window, n)) / made.depth for n in LENGTHS
  }


def _seen(window: int, length: int) -> float:
  """Keys that a token of a row sees, on average, of a causal mask."""
  near = min(window or length, length)
  return near - near * (near - 1) / 2 / length


def _counted(made: Transformer, length: int) -> int:
  """Multiply-adds of the layers for a row, all keys seen by all queries."""
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  variables = jax.eval_shape(made.init, jax.random.key(0), tokens)
  run = lambda v, x: made.apply(v, x, method="hidden_states")
  return work.count_work(run, variables, tokens).multiply_adds


def fused(row: str, platform: str) -> str:
  """Whether all mixers of a row that attend have a kernel, and which not."""
  names = {}
  for mixer in dict.fromkeys(model(row).mixers):
    if mixer != "convolution":
      names[mixer] = _has_kernel(model(row, (mixer,)), platform)
  if len(set(names.values())) == 1:
    return "yes" if all(names.values()) else "no"
  return ", ".join(name for name, has in names.items() if has)


def _has_kernel(made: Transformer, platform: str) -> bool:
  made = made.clone(implementation=platform)
  tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
  xla = made.clone(implementation="xla")
  variables = jax.eval_shape(xla.init, jax.random.key(0), tokens)
  run = lambda v, x: made.apply(v, x, method="hidden_states")
  try:
    jaxpr = jax.make_jaxpr(run)(variables, tokens).jaxpr
  except ValueError as error:
    if f"implementation is {platform!r}" not in str(error):
      raise
    return False
  return any(name == "pallas_call" for name in _primitives(jaxpr))


def _primitives(jaxpr: core.Jaxpr) -> Iterator[str]:
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for inner in core.jaxprs_in_params(equation.params):
      yield from _primitives(inner)


def static(row: str) -> list[str]:
  """The cells of a row that follow from the code."""
  counts = multiply_adds(row)
  return [
    row,
    f"{parameters(row) / 1e6:.2f}",
    " / ".join(_short(cache_bytes(row, n)) for n in LENGTHS),
    " / ".join(f"{counts[n] / 1e6:.1f}" for n in LENGTHS),
    fused(row, "tpu"),
    fused(row, "gpu"),
  ]


def _short(number: float) -> str:
  return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def measured(row: str, lines: Sequence[Mapping[str, Any]]) -> list[str]:
  """The cells of a row that studies gave: loss, recall, what length costs."""

  def values(of: str, name: str | None, value) -> list[float]:
    own = [x for x in lines if (x["study"], x["row"]) == (of, name)]
    return [value(line) for line in own]

  return [
    study.spread(values("mixers", row, lambda x: x["loss"]), 3),
    study.spread(values("based", _RECALL.get(row), lambda x: x["accuracy"]), 3),
    study.spread(
      values(
        "softplus_attention",
        _LONGER.get(row),
        lambda x: x["loss_16"] - x["loss_1"],
      ),
      3,
    ),
  ]


def table(lines: Sequence[Mapping[str, Any]]) -> str:
  """All rows in Markdown."""
  lengths = " / ".join(NAMES)
  header = (
    "mixer",
    "parameters M",
    f"cache, bytes a token at {lengths}",
    f"multiply-adds M a token at {lengths}",
    "fused on TPU",
    "on GPU",
    "loss",
    "recall",
    "16 times the length",
  )
  cells = [[*static(row), *measured(row, lines)] for row in ROWS]
  return study.markdown(header, cells)


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line and prints, or writes into a page."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--report", help="Markdown file with marks for the table")
  args = parser.parse_args(argv)
  made = table(study.read_lines(_LINES))
  print(made)
  if args.report:
    study.write_tables(epath.Path(args.report), {MARK: made})


if __name__ == "__main__":
  main()
