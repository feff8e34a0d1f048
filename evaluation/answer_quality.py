"""How much an answer has of a reference: words in common, and ROUGE.

As "L-CiteEval" (arXiv 2410.02115) reports them beside citations. Words are
compared as they are written; nothing is stemmed.
"""

import collections
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from evaluation import citations

_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[a-z0-9]+")


class Overlap(NamedTuple):
  """What two texts share.

  Attributes:
    precision: share of the answer that the reference has.
    recall: share of the reference that the answer has.
    f1: the harmonic mean of both.
  """

  precision: float
  recall: float
  f1: float


_NOTHING = Overlap(0.0, 0.0, 0.0)


def question_words(text: str) -> list[str]:
  """Lower case words without punctuation and articles, as SQuAD has them."""
  words = text.lower().translate(_PUNCTUATION).split()
  return [word for word in words if word not in _ARTICLES]


def question_overlap(answer: str, references: Sequence[str]) -> Overlap:
  """Compares the words of an answer's first line with references.

  Args:
    answer: a text; its citations do not count.
    references: right answers, at least one.

  Returns:
    The largest precision, recall and F1, each over all references: they may be
    of different ones.

  Raises:
    ValueError: if there is no reference.
  """
  if not references:
    raise ValueError(f"{references=} is empty; it needs a right answer.")
  first = citations.remove_citations(answer).strip().partition("\n")[0]
  words = question_words(first)
  each = [_counted(words, question_words(ref)) for ref in references]
  return Overlap(*map(max, zip(*each, strict=True)))


def rouge_words(text: str) -> list[str]:
  """Lower case runs of letters and digits, of the Latin alphabet."""
  return _WORD.findall(text.lower())


def rouge_1(answer: str, reference: str) -> Overlap:
  """ROUGE-1 (Lin, 2004): words that both have, each as often as in both.

  The recall is the benchmark's score of needles. Citations are to be removed
  before.
  """
  return _counted(rouge_words(answer), rouge_words(reference))


def rouge_l(answer: str, reference: str) -> Overlap:
  """ROUGE-L (Lin, 2004) of whole texts: by the longest common subsequence.

  The F1 is the benchmark's score of summaries. Citations are to be removed
  before.
  """
  first, second = rouge_words(answer), rouge_words(reference)
  return _overlap(longest_common(first, second), len(first), len(second))


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
  """The length of the longest common subsequence of two sequences.

  By rows of bits (Hyyro, "Bit-parallel LCS-length computation revisited",
  2004): bit i of a row is 0 where the length grows at item i of `first`.
  """
  places = collections.defaultdict(int)
  for i, item in enumerate(first):
    places[item] |= 1 << i
  all_bits = (1 << len(first)) - 1
  row = all_bits
  for item in second:
    same = row & places.get(item, 0)
    row = ((row + same) | (row - same)) & all_bits
  return len(first) - row.bit_count()


def _counted(answer: Sequence[str], reference: Sequence[str]) -> Overlap:
  common = collections.Counter(answer) & collections.Counter(reference)
  return _overlap(common.total(), len(answer), len(reference))


def _overlap(common: int, answer: int, reference: int) -> Overlap:
  if not common:
    return _NOTHING
  precision, recall = common / answer, common / reference
  return Overlap(precision, recall, citations.harmonic(precision, recall))
