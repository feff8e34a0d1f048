"""Whether a model looks at the passages that it cites.

The analysis of section 5.2 of "L-CiteEval" (arXiv 2410.02115): the place that
is most attended to, over all heads, while a citation is written. Maps come from
`interpret.run`; several layers are joined along the heads.

The paper does not say of what its correlation is, nor what becomes of sinks:
that it is over pairs of answer and passage, and that keys of no passage may be
left out, is ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import interpret

MAPS = "layer_*/mixer/attention_weights"


class Agreement(NamedTuple):
  """How often attention and citations go together.

  Attributes:
    agreement: share of answers in which a right passage is both attended to and
      cited, or neither.
    correlation: Pearson's r, over pairs of an answer and a passage of its
      context, between how often the passage is attended to and how often it is
      cited; nan where one of them never changes.
    attended: share of answers in which a right passage is attended to.
    cited: share in which one is cited.
  """

  agreement: float
  correlation: float
  attended: float
  cited: float


def citation_maps(
  model: nn.Module,
  variables: Mapping[str, Any],
  tokens: np.ndarray,
  queries: np.ndarray,
) -> np.ndarray:
  """Attention of all layers and heads at the places where a model cites.

  Args:
    model: a causal language model with softmax attention in its layers.
    variables: its variables.
    tokens: prompts with their answers, padded on the right [batch, length].
    queries: places of the tokens whose logits give the number of a citation,
      [batch, citations].

  Returns:
    float32 [batch, layers * heads, citations, length].
  """
  _, maps = interpret.run(
    model, variables, jnp.asarray(tokens), read=MAPS, train=False
  )
  index = jnp.asarray(queries)[:, None, :, None]
  return np.concatenate(
    [
      np.asarray(jnp.take_along_axis(weights, index, axis=2), np.float32)
      for weights in maps.values()
    ],
    axis=1,
  )


def attended_passages(
  weights: np.ndarray, passages: np.ndarray, *, only_passages: bool = True
) -> np.ndarray:
  """The passage of the key that has the largest weight of all heads.

  Args:
    weights: [batch, heads, queries, keys].
    passages: number of the passage of each key, from 1; 0 for keys of none,
      [batch, keys].
    only_passages: whether only keys of passages are looked at; else the answer
      is 0 where a sink or the question has the largest weight.

  Returns:
    int64 [batch, queries].

  Raises:
    ValueError: if shapes do not agree, or a row has no passage.
  """
  weights, passages = np.asarray(weights, np.float32), np.asarray(passages)
  batch, _, _, keys = weights.shape
  if passages.shape != (batch, keys):
    raise ValueError(
      f"passages has shape {passages.shape}; for weights {weights.shape} it "
      f"must be {(batch, keys)}."
    )
  if only_passages:
    if not (passages > 0).any(axis=1).all():
      raise ValueError("passages has a row of zeros: a context of no passage.")
    weights = np.where(passages[:, None, None, :] > 0, weights, -1.0)
  place = weights.max(axis=1).argmax(axis=-1)
  return np.take_along_axis(passages.astype(np.int64), place, axis=1)


def retrieval_agreement(
  weights: np.ndarray,
  passages: np.ndarray,
  cited: Sequence[Sequence[int]],
  right: Sequence[Sequence[int]],
  *,
  counted: np.ndarray | None = None,
  only_passages: bool = True,
) -> Agreement:
  """Compares what is attended to while citing with what is cited.

  Args:
    weights: maps at the places where citations are written,
      [answers, heads, queries, keys].
    passages: as in `attended_passages`.
    cited: numbers that each answer cites.
    right: numbers of each question's right passages.
    counted: bool [answers, queries], false for padding; None for no padding.
    only_passages: as in `attended_passages`.

  Raises:
    ValueError: as `attended_passages`, and if there are not as many citations
      and right passages as answers.
  """
  attended = attended_passages(weights, passages, only_passages=only_passages)
  if not len(attended) == len(cited) == len(right):
    raise ValueError(
      f"weights are of {len(attended)} answers, cited of {len(cited)} and "
      f"right of {len(right)}; they must be as many."
    )
  if counted is None:
    counted = np.ones(attended.shape, bool)
  looked = [
    row[own].tolist() for row, own in zip(attended, counted, strict=True)
  ]
  hit = np.array([_meet(*pair) for pair in zip(looked, right, strict=True)])
  told = np.array([_meet(*pair) for pair in zip(cited, right, strict=True)])
  pairs = [
    (first.count(passage), list(second).count(passage))
    for row, first, second in zip(passages, looked, cited, strict=True)
    for passage in np.unique(row[row > 0]).tolist()
  ]
  return Agreement(
    float((hit == told).mean()),
    _pearson(*np.array(pairs, np.float64).T),
    float(hit.mean()),
    float(told.mean()),
  )


def _meet(first: Sequence[int], second: Sequence[int]) -> bool:
  return not set(first).isdisjoint(second)


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
  if not (first.std() and second.std()):
    return float("nan")
  return float(np.corrcoef(first, second)[0, 1])
