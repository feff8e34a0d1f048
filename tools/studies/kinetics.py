"""Kinetics (arXiv 2506.05333): blocks chosen by their mean key keep quality.

Claimed: a step of decoding that reads few blocks of the cache, chosen by their
mean keys, loses little to dense attention at a fraction of what it reads, and
far less than the last tokens alone. Measured on one model that was trained
dense, decoded token by token with other attention. Against: the last tokens,
random blocks (the control of the choice), and the best single tokens, which
cost a search through all keys. The first layer is dense, as in the paper.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import language
from tasks import losses
from tools import study, study_text

# Tokens that a step sees at most, the first and the last among them.
BUDGETS = (16, 32, 64)
SINK, LOCAL, BLOCK = 2, 6, 4
_ROWS = 32


def kinds(budget: int) -> dict[str, dict[str, Any]]:
  """Options of sparse steps that see as many tokens, by name."""
  left = budget - SINK - LOCAL
  ends = {"sink": SINK, "local": LOCAL}
  blocks = {**ends, "block": BLOCK, "blocks": left // BLOCK}
  return {
    "last tokens": {**ends, "local": LOCAL + left, "block": 1, "blocks": 0},
    "random blocks": {**blocks, "selection": "random"},
    "blocks": blocks,
    "tokens": {**ends, "block": 1, "blocks": left},
  }


def rows(variant: str) -> Sequence[study.Row]:
  """The plain model, which other studies have too."""
  config = language.get_config("study")
  config = study.shrunk(config) if variant == "test" else config
  return [study.Row("softmax", config)]


def measure(run: study.Run) -> dict[str, float]:
  """Losses of the same targets, decoded one by one."""
  model, small = run.task.model, run.config.data.length < 64
  batch = study_text.some(study_text.rows(run), 2 if small else _ROWS)
  measured = {"decoded": _loss(model, run.variables, batch)}
  for budget in BUDGETS[:1] if small else BUDGETS:
    for name, options in kinds(budget).items():
      sparse = model.clone(
        mixers=("full", *["full/sparse"] * (model.depth - 1)),
        mixer_options={"full/sparse": {"sparse_decoding": options}},
      )
      loss = _loss(sparse, run.variables, batch)
      measured[f"{name} {budget}"] = loss
  return measured


def _loss(model: Any, variables: Any, batch: Mapping[str, np.ndarray]) -> float:
  """Returns nats for each target that counts."""
  places = ("tokens", "positions", "segments", "targets", "weights")
  # A token a step.
  steps = [jnp.asarray(batch[name]).T[..., None] for name in places]
  decode = jax.jit(functools.partial(_decode, model))
  return float(decode(variables, steps) / batch["weights"].sum())


def _decode(model, variables, steps):
  """Returns the sum of losses over steps, arrays [length, batch, 1]."""
  length, batch, _ = steps[0].shape

  def step(cache, xs):
    tokens, positions, segments, targets, weights = xs
    logits, cache = model.apply(
      variables, tokens, positions=positions, segments=segments, cache=cache
    )
    return cache, losses.weighted_cross_entropy(logits, targets, weights)

  _, summed = jax.lax.scan(step, model.init_cache(batch, length), steps)
  return summed.sum()


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Losses by what a step sees, and how many tokens."""
  tried = [n for n in BUDGETS if all(f"blocks {n}" in line for line in lines)]
  dense = [line["decoded"] for line in lines]
  made = [["all", *[study.spread(dense, 4)] * len(tried)]]
  for name in kinds(BUDGETS[0]):
    cells = [
      study.spread([line[f"{name} {budget}"] for line in lines], 4)
      for budget in tried
    ]
    made.append([name, *cells])
  header = ("a step sees", *(f"{n} tokens" for n in tried))
  return {"kinetics": study.markdown(header, made)}
