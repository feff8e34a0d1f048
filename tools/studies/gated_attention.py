"""Gated Attention (arXiv 2505.06708): a sigmoid gate of each head's output.

Claimed: with it the first token is no sink of attention, activations stay
small, and training survives greater learning rates; the order of attention to
the first token is elementwise <= headwise < a gate that cannot close <= none
(table 4). Against: the same model without a gate. Controls: a gate between 0.5
and 1, which has the non-linearity and not the sparsity; and attention that is
the same everywhere, for what a row's first token gets of it.

A row has an end-of-text token where a document begins, and most rows begin
within one; so the first token is that of a row's segment, whatever it is, and
that of documents' beginnings is told besides.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import language
from interpret import statistics
from tools import study, study_text

# Name: (fields of the model, published attention to the first token).
_GATES = {
  "none": ({}, "0.467"),
  "headwise": ({"output_gate": "headwise"}, "0.073"),
  "elementwise": ({"output_gate": "elementwise"}, "0.048"),
  "0.5 to 1": (
    {"output_gate": "elementwise", "gate_activation": "half_sigmoid"},
    "0.451",
  ),
}
_GREATER = ("none", "elementwise")
_TIMES = 4
_ROWS = 64


def rows(variant: str) -> Sequence[study.Row]:
  """Each gate, and two of them at a greater learning rate."""
  made = [study.Row(gate, _config(gate, variant)) for gate in _GATES]
  for gate in _GREATER:
    config = _config(gate, variant)
    config.optimizer.learning_rate *= _TIMES
    made.append(study.Row(f"{gate}, {_TIMES} times the rate", config))
  return made


def _config(gate: str, variant: str):
  config = language.get_config("study")
  config.model.update(_GATES[gate][0])
  if variant == "test":
    config = study.shrunk(config, depth=1)
  return config


def measure(run: study.Run) -> dict[str, Any]:
  """Attention to first tokens, activations and gates, on rows of evaluation."""
  every = study_text.rows(run)
  batch = study_text.some(every, _ROWS)
  model = run.task.model
  measured = jax.jit(
    lambda variables, tokens, places: statistics.summary(
      model, variables, tokens, **places
    )
  )
  places = study_text.places(batch)
  result = measured(run.variables, batch["tokens"], places)
  begun = study_text.some(
    _begun(every, run.task.info.tokenizer.end_of_text), _ROWS
  )
  after = measured(run.variables, begun["tokens"], study_text.places(begun))
  targets = batch["targets"][batch["weights"] > 0]
  counts = np.bincount(targets)
  shares = counts[counts > 0] / len(targets)
  return {
    **{name: float(value) for name, value in result.items()},
    "even_first_token": float(_even(places)),
    "begun_rows": len(begun["tokens"]),
    "begun_first_token": float(after["first_token_attention"]),
    # Of the bytes' frequencies alone: what a run that diverged is above.
    "nats_of_frequencies": float(-(shares * np.log(shares)).sum()),
  }


def _begun(
  batch: Mapping[str, np.ndarray], end_of_text: int
) -> dict[str, np.ndarray]:
  """Rows in which documents begin, with what else is in them as padding."""
  positions = batch["positions"]
  places = np.arange(positions.shape[1])
  # Of padding any place will do.
  starts = np.where(positions >= 0, places - positions, 0)
  first = np.take_along_axis(batch["tokens"], starts, axis=1)
  positions = np.where(first == end_of_text, positions, -1)
  kept = (positions >= 0).any(1)
  batch = {**batch, "positions": positions}
  return {name: array[kept] for name, array in batch.items()}


def _even(places: Mapping[str, np.ndarray]) -> jax.Array:
  """Attention to the first token that is the same for all keys before."""
  positions, segments = places["positions"], places["segments"]
  own = segments[:, :, None] == segments[:, None, :]
  seen = own & (positions[:, None, :] <= positions[:, :, None])
  seen = (seen & (positions[:, None, :] >= 0)).astype(np.float32)
  even = seen / np.maximum(seen.sum(-1, keepdims=True), 1)
  return statistics.first_token_attention(
    jnp.asarray(even[:, None]), **places
  ).mean()


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """One of the gates, one of the greater rate."""
  header = ("gate", "parameters", "loss", "first token", "of documents' first")
  header += ("published", "largest", "mean of layers", "mean gate")
  made = [["attention the same everywhere", "", ""]]
  made[0] += [study.spread([x["even_first_token"] for x in lines[:1]], 3)]
  made[0] += [""] * 5
  for gate, (_, published) in _GATES.items():
    own = [line for line in lines if line["row"] == gate]
    of = functools.partial(_spread, own)
    made.append(
      [
        gate,
        f"{own[0]['parameters']:,}",
        of("loss", 4),
        of("first_token_attention", 3),
        of("begun_first_token", 3),
        published,
        of("largest_activation", 1),
        of("mean_largest", 1),
        of("mean_gate", 3),
      ]
    )
  return {
    "gated attention": study.markdown(header, made),
    "gated attention, learning rate": _survival(lines),
  }


def _survival(lines: Sequence[Mapping[str, Any]]) -> str:
  header = ("gate", "loss", f"loss at {_TIMES} times the rate", "survived")
  header += ("first token", "largest")
  bound = max(line["nats_of_frequencies"] for line in lines)
  made = []
  for gate in _GREATER:
    usual, greater = (
      [line for line in lines if line["row"] == row]
      for row in (gate, f"{gate}, {_TIMES} times the rate")
    )
    survived = sum(line["loss"] < bound for line in greater)
    made.append(
      [
        gate,
        *(_spread(of, "loss", 4) for of in (usual, greater)),
        f"{survived} of {len(greater)}",
        _spread(greater, "first_token_attention", 3),
        _spread(greater, "largest_activation", 1),
      ]
    )
  return study.markdown(header, made)


def _spread(lines: Sequence[Mapping[str, Any]], name: str, digits: int) -> str:
  return study.spread([line[name] for line in lines if name in line], digits)
