"""Answers to "how many stars, and in which passages?", as JSON.

The task "Counting Stars" of L-CiteEval (arXiv 2410.02115), whose rules are in
its code only: an answer is an object with "little_penguin", the numbers of
stars, and "passage_id", where they are told of.
"""

import collections
import json
from collections.abc import Sequence
from typing import NamedTuple

from evaluation import citations


class Answer(NamedTuple):
  """What an answer says.

  Attributes:
    stars: numbers, as given.
    passages: numbers of passages, as given.
  """

  stars: list[int]
  passages: list[int]


def parse(text: str) -> Answer | None:
  """Reads the first JSON object of a text; None if there is none such.

  What is not an integer in its lists is left out; a missing list is empty.
  """
  start = text.find("{")
  if start < 0:
    return None
  try:
    found, _ = json.JSONDecoder().raw_decode(text[start:])
  # Of lists in lists in lists, or of numbers of thousands of digits.
  except (ValueError, RecursionError):
    return None
  return Answer(
    _integers(found.get("little_penguin")), _integers(found.get("passage_id"))
  )


def star_scores(text: str, passages: Sequence[int]) -> citations.Scores:
  """Precision and recall of the distinct passages of an answer.

  Args:
    text: the answer; 0 in all if it has no object.
    passages: numbers of the right ones, at least one.

  Raises:
    ValueError: if there is no right one.
  """
  right = set(passages)
  if not right:
    raise ValueError(f"{passages=} is empty, so that there is no recall.")
  answer = parse(text)
  if answer is None or not answer.passages:
    return citations.NOTHING
  given = set(answer.passages)
  precision = len(given & right) / len(given)
  recall = len(given & right) / len(right)
  f1 = citations.harmonic(recall, precision)
  return citations.Scores(recall, precision, f1, len(given))


def star_accuracy(text: str, stars: Sequence[int]) -> float:
  """The share of the numbers of stars that an answer has, each once. Ours.

  Numbers that are matched, by the longer of both lists: the authors' script
  asks of each number whether it is among the right ones, so that one right
  number, again and again, is all right.

  Args:
    text: the answer; 0 if it has no object.
    stars: the right numbers, at least one.

  Raises:
    ValueError: if there is no right one.
  """
  if not stars:
    raise ValueError(f"{stars=} is empty, so that there is no share of it.")
  answer = parse(text)
  if answer is None:
    return 0.0
  common = collections.Counter(answer.stars) & collections.Counter(stars)
  return common.total() / max(len(stars), len(answer.stars))


def _integers(found) -> list[int]:
  if not isinstance(found, list):
    return []
  return [n for n in found if isinstance(n, int) and not isinstance(n, bool)]
