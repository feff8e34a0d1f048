"""Contexts of other lengths for the same questions, and scores by group.

"L-CiteEval" (arXiv 2410.02115) has three views of a task: by the length that
samples have, of the same samples made longer (L-CiteEval-Length), and of easy
and hard ones (L-CiteEval-Hardness).
"""

import collections
import statistics
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import NamedTuple

import numpy as np

# Tokens of a bin of lengths, and entities that padding may share.
BIN = 8192
SHARED_ENTITIES = 5


class Context(NamedTuple):
  """Passages for a question.

  Attributes:
    passages: in order, cited as 1, 2, ...
    own: for each passage of the seed, its number among `passages`, from 1.
  """

  passages: list[str]
  own: list[int]


def extend(
  question: str,
  passages: Sequence[str],
  padding: Sequence[str],
  length: int,
  *,
  entities: Callable[[str], Collection[Hashable]],
  count: Callable[[str], int],
  rng: np.random.Generator,
  shared: int = SHARED_ENTITIES,
) -> Context:
  """Makes a context longer by texts that do not help with its question.

  Padding is left out if more than `shared` of its entities are in the question
  or the passages. (The paper filters by entities shared "with both"; that
  either counts is ours, and leaves out more.) Texts are tried in random order,
  and one that would be too long is left out; what is taken goes to random
  places between the passages, whose own order stays.

  Args:
    question: of the seed.
    passages: of the seed.
    padding: texts of other seeds, each of a passage's size.
    length: tokens that the context may have at most.
    entities: gives of a text what it speaks of, as a named entity recogniser.
    count: gives of a text its number of tokens.
    rng: decides order and places.
    shared: entities that padding may share.

  Raises:
    ValueError: if the passages alone are longer than `length`.
  """
  used = sum(map(count, passages))
  if used > length:
    raise ValueError(
      f"length={length} is less than the {used} tokens of the seed's "
      f"{len(passages)} passages."
    )
  known = set(entities(question)).union(*map(entities, passages))
  taken = []
  for index in rng.permutation(len(padding)):
    text = padding[index]
    size = count(text)
    if used + size <= length and len(known & set(entities(text))) <= shared:
      taken.append(text)
      used += size
  places = rng.choice(
    len(passages) + len(taken), len(passages), replace=False, shuffle=False
  )
  own = np.sort(places).tolist()
  rest, seed = iter(taken), iter(passages)
  among = set(own)
  whole = [
    next(seed if place in among else rest)
    for place in range(len(passages) + len(taken))
  ]
  return Context(whole, [place + 1 for place in own])


def length_bin(tokens: int, size: int = BIN) -> str:
  """The bin of a length, as "8192-16384": from the first to below the second.

  Raises:
    ValueError: for a negative length or a size below 1.
  """
  if tokens < 0 or size < 1:
    raise ValueError(
      f"{tokens=} and {size=}: a length is 0 or more, a bin's size 1 or more."
    )
  start = tokens // size * size
  return f"{start}-{start + size}"


def difficulty(
  quality: Sequence[float], names: Sequence[str] = ("easy", "medium", "hard")
) -> list[str]:
  """Parts of equal size by the quality of a reference model's answers.

  The paper takes those of GPT-4o. Samples of the same quality may be in
  different parts, in the order in which they come: ours.

  Args:
    quality: of each sample; the easiest have the highest.
    names: of the parts, the easiest first.

  Returns:
    The name of each sample's part.
  """
  order = np.argsort(-np.asarray(quality, np.float64), kind="stable")
  rank = np.empty(len(order), np.int64)
  rank[order] = np.arange(len(order))
  return [names[r * len(names) // len(order)] for r in rank]


def by_group(
  groups: Sequence[Hashable], scores: Sequence[Sequence[float]]
) -> dict[Hashable, tuple[float, ...]]:
  """Means of scores for each group, in the order of their first samples.

  Args:
    groups: of each sample, as of `length_bin` or `difficulty`.
    scores: of each sample, as many figures for all, such as a
      `citations.Scores` or an `answer_quality.Overlap`.

  Returns:
    For each group the mean of each figure.
  """
  found = collections.defaultdict(list)
  for group, figures in zip(groups, scores, strict=True):
    found[group].append(figures)
  return {
    group: tuple(statistics.fmean(x) for x in zip(*rows, strict=True))
    for group, rows in found.items()
  }
