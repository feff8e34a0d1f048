"""Attention calibration in a model of lists of keys and labels."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import interpret
from interpret import attention_calibration, sink_edits
from models import decoding
from tools import key_label_lists

TITLE = "Attention calibration (2406.15765)"
TEXT = """\
A small language model is trained for minutes on lists of keys and labels in
context, three labels in ten of which are wrong, and asked for the label that
the last key has else (`tools/key_label_lists.py`); the first row is what the
most frequent label would be worth. Each head is calibrated alone, with
threshold 0.1 and a kept part of 0.4; those with which more answers of the
search split are right are chosen, and measured on a test split of as many rows
that the choice has not seen, with the gain on the split of the choice beside
it. Where no head gains, none is chosen. The released search begins with layer
2; of four layers that leaves half, so that the other rows are of all, which is
ours. "sinks" is how many keys behind the first are sinks, a mean over rows,
layers and heads; "newlines" is the share of them that are separators, which are
a third of all tokens; "sink mass" is the part of the attention of all words
that they get, with the edit. Controls: all heads, as many at random, or one if
none was chosen (20 draws, with the band of 95 % of them), heads chosen by
labels that were mixed among rows, receivers without the first key, a threshold
of 5 / N, and a temperature of 1.1. The choice is worth something if "chosen" is
above the band on the test split. Published, for Llama-30B over data sets: 7.3 %
of accuracy. There is no third split: nothing but heads is chosen.
"""
COLUMNS = (
  ("heads", ".0f"),
  ("search_gain", "+.2%"),
  ("accuracy", ".2%"),
  ("test_gain", "+.2%"),
  ("lowest", ".2%"),
  ("highest", ".2%"),
  ("sinks", ".2f"),
  ("newlines", ".1%"),
  ("sink_mass", ".3f"),
)
THRESHOLD = attention_calibration.PUBLISHED_THRESHOLDS["classification"]
# Which heads, of layers from which on, and fields of the edit that differ.
_ROWS = {
  "the most frequent label": {"heads": "none", "oracle": True},
  "as it is": {"heads": "none"},
  "chosen from layer 2 on": {"heads": "chosen", "first_layer": 2},
  "all from layer 2 on": {"heads": "all", "first_layer": 2},
  "chosen": {"heads": "chosen"},
  "all": {"heads": "all"},
  "random": {"heads": "random"},
  "chosen by mixed labels": {"heads": "mixed"},
  "chosen, nothing to the first key": {
    "heads": "chosen",
    "first_receives": False,
  },
  "chosen, threshold 5 / N": {
    "heads": "chosen",
    "by_length": True,
    "threshold": attention_calibration.PUBLISHED_ALPHA,
  },
  "temperature 1.1": {"heads": "all", "temperature": 1.1},
}
_DRAWS = {"full": 20, "test": 2}
# Rows of a split.
_NUMBERS = {"full": 1000, "test": 8}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows, heads and fields of the edit; of a test, two."""
  names = tuple(_ROWS) if variant == "full" else ("chosen", "random")
  return [(name, _ROWS[name]) for name in names]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Calibrates the heads of a row in the model of a seed.

  Args:
    folder: of what rows share, with the trained model and the search.
    name: of the row.
    options: "heads", which, and fields of the edit; or "temperature" in its
      place.
    seed: of the training, the splits and the draws.
    variant: "full" or "test".

  Returns:
    What COLUMNS names of it.
  """
  del name
  subject, splits = _subject(folder, seed, variant)
  if options.get("oracle"):
    return {"accuracy": key_label_lists.most_frequent(splits["test"])}
  options = dict(options)
  which, first = options.pop("heads"), options.pop("first_layer", 0)
  tables = _tables(which, first, folder, seed, variant)
  model = _edited(subject.model, options)

  def accuracies(split):
    return [_accuracy(model, subject, table, splits[split]) for table in tables]

  none = np.zeros_like(tables[0])
  plain = {
    split: _accuracy(subject.model, subject, none, lists)
    for split, lists in splits.items()
  }
  found = accuracies("test")
  result = {
    "heads": float(np.mean([table.sum() for table in tables])),
    "accuracy": float(np.mean(found)),
    "test_gain": float(np.mean(found)) - plain["test"],
  }
  if len(tables) > 1:
    lowest, highest = np.quantile(found, [0.025, 0.975])
    result |= {"lowest": float(lowest), "highest": float(highest)}
  else:
    result["search_gain"] = accuracies("search")[0] - plain["search"]
  return result | _sinks(model, subject, tables[0], options, splits["test"])


@functools.cache
def _subject(folder, seed, variant):
  """The trained model, and the splits of its questions."""
  subject = key_label_lists.trained(folder, seed, variant)
  draw = lambda number: key_label_lists.draw(
    np.random.default_rng((seed, number)), _NUMBERS[variant]
  )
  return subject, {"search": draw(1), "test": draw(2)}


@functools.cache
def _search(first, folder, seed, variant, mixed):
  """Tries heads on the search split; its predictions are made once."""
  subject, splits = _subject(folder, seed, variant)
  labels = splits["search"].labels
  if mixed:
    labels = np.random.default_rng((seed, 3)).permutation(labels)

  def evaluate(table):
    said = _predictions(folder, seed, variant, table.tobytes())
    return (said == labels).mean()

  model = subject.model
  return attention_calibration.select_heads(
    evaluate, model.depth, model.heads, first_layer=first
  )


@functools.cache
def _predictions(folder, seed, variant, table):
  """What the model says of the search split, with heads of a table's bytes."""
  subject, splits = _subject(folder, seed, variant)
  shape = subject.model.depth, subject.model.heads
  table = np.frombuffer(table, bool).reshape(shape)
  return _say(_edited(subject.model, {}), subject, table, splits["search"])


def _tables(which, first, folder, seed, variant) -> list[np.ndarray]:
  """Tables of heads, bool [layers, heads]; several if they are drawn."""
  subject, _ = _subject(folder, seed, variant)
  shape = subject.model.depth, subject.model.heads
  if which in ("none", "all"):
    table = np.full(shape, which == "all")
    table[:first] = False
    return [table]
  chosen = _search(first, folder, seed, variant, which == "mixed").chosen
  if which != "random":
    return [chosen]
  rng = np.random.default_rng((seed, 4))
  return [
    attention_calibration.random_heads(
      rng, max(1, chosen.sum()), *shape, first_layer=first
    )
    for _ in range(_DRAWS[variant])
  ]


def _edited(model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
  """The model with the edit of a row in all layers, for heads of a table."""
  options = dict(options)
  if "temperature" in options:
    edit = _Tempered(options["temperature"])
  else:
    fields = {"threshold": THRESHOLD, **options}
    edit = sink_edits.Calibration(heads="given", **fields)
  return interpret.edited(model, [(name, edit) for name in _maps(model)])


def _maps(model) -> list[str]:
  return [f"layer_{i}/mixer/attention_weights" for i in range(model.depth)]


@dataclasses.dataclass(frozen=True)
class _Tempered:
  """Scores by a temperature, but for the first key, which keeps its weight."""

  temperature: float

  def __call__(self, weights, site):
    first = (site.facts["key_positions"] == 0)[:, None, None]
    rest = jnp.where(first, 0.0, weights)
    power = jnp.where(rest > 0, rest, 1.0) ** (1 / self.temperature)
    power = jnp.where(rest > 0, power, 0.0)
    total = power.sum(-1, keepdims=True)
    power *= rest.sum(-1, keepdims=True) / jnp.where(total > 0, total, 1.0)
    return jnp.where(first, weights, power)


def _accuracy(model, subject, table, lists) -> float:
  return float((_say(model, subject, table, lists) == lists.labels).mean())


def _say(model, subject, table, lists) -> np.ndarray:
  """The label that is most likely, of those that are labels, [number]."""
  variables = interpret.with_given(subject.variables, {"heads": table})
  return np.asarray(_run(decoding.hashable(model), variables, lists.tokens)[0])


@functools.partial(jax.jit, static_argnames=("model", "read"))
def _run(model, variables, tokens, read=()):
  logits, values = interpret.run(model, variables, tokens, read=read)
  first = key_label_lists.FIRST_LABEL
  labels = logits[:, -1, first : first + key_label_lists.LABELS]
  return first + labels.argmax(-1), values


def _sinks(model, subject, table, options, lists) -> dict[str, float]:
  """Sinks without the edit, and what they get with it."""
  plain, names = subject.model, tuple(_maps(subject.model))
  lists = lists._replace(tokens=lists.tokens[: _NUMBERS["full"] // 4])
  given = interpret.with_given(subject.variables, {"heads": table})
  read = lambda model: _run(
    decoding.hashable(model), given, lists.tokens, names
  )[1]
  before, after = read(plain), read(model)
  visible = attention_calibration.causal(np.ones(lists.tokens.shape, bool))
  threshold = options.get("threshold", THRESHOLD)
  if options.get("by_length"):
    threshold /= key_label_lists.LENGTH
  first = (np.arange(key_label_lists.LENGTH) == 0)[None, None]
  newline = (lists.tokens == key_label_lists.NEWLINE)[:, None]
  counts, separators, masses = [], [], []
  for name in names:
    sums, observers = attention_calibration.column_sums(before[name], visible)
    sinks = attention_calibration.find_sinks(sums, observers, first, threshold)
    counts.append(sinks.sum(-1).mean())
    separators.append((sinks & newline).sum(-1).mean())
    masses.append(jnp.where(sinks[:, :, None], after[name], 0).sum(-1).mean())
  result = {
    "sinks": float(np.mean(counts)),
    "sink_mass": float(np.mean(masses)),
  }
  if result["sinks"]:
    result["newlines"] = float(np.sum(separators) / np.sum(counts))
  return result
