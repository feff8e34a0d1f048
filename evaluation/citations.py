r"""Whether what an answer cites supports what it says: citation scores.

"L-CiteEval" (arXiv 2410.02115): a context is cut into passages with numbers
from 1, each sentence of an answer cites some as "[3]", and a verifier says
whether these entail it. Citation recall is the share of sentences that their
citations support, precision that of citations that are needed, after ALCE.

Data, the splitter of sentences and the verifier are yours. Where the authors'
scripts do what their paper does not say, the default is ours, and
`published=True` is theirs:

- a passage that is cited twice in a sentence counts once; theirs: twice;
- "[0]" is out of range; theirs: the last passage;
- an answer without a sentence has 0 in all; theirs: it is left out of means,
  and `mean` gets None for it.
"""

import re
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

# From a premise and a hypothesis to whether the first entails the second.
Entails = Callable[[str, str], bool]

_CITED = re.compile(r"\[([0-9]+)")
_CITATION = re.compile(r"\s*\[[0-9]+(?:[\s,;0-9]*\])?")
# No context has as many passages, and Python refuses to read long numbers.
_BEYOND = 10**18
# Citations of a sentence that count.
LIMIT = 3


class Scores(NamedTuple):
  """Citation scores of one answer, or means of several.

  Attributes:
    recall: share of sentences that are supported.
    precision: share of citations that are needed; 0 if there is none.
    f1: the harmonic mean of an answer's two; 0 if both are 0.
    citations: how many there are that count.
  """

  recall: float
  precision: float
  f1: float
  citations: float


NOTHING = Scores(0.0, 0.0, 0.0, 0)


def parse_citations(text: str) -> list[int]:
  """The numbers behind opening brackets, in order, as written.

  Of "[1, 2]" it is 1 alone: the benchmark wants separate brackets. A number of
  more than 18 digits is 10^18, out of any range.
  """
  found = (digits.lstrip("0") or "0" for digits in _CITED.findall(text))
  return [int(digits) if len(digits) <= 18 else _BEYOND for digits in found]


def remove_citations(text: str) -> str:
  """The text without what `parse_citations` reads, and spaces before it."""
  shorter = _CITATION.sub("", text)
  # What is left may be one, as of "[[1]2]".
  while shorter != text:
    text, shorter = shorter, _CITATION.sub("", shorter)
  return shorter


def passage_text(text: str, title: str = "") -> str:
  """A passage as the verifier sees it."""
  return f"Title: {title}\nPassage: {text}" if title else f"Passage: {text}"


def citation_scores(
  sentences: Sequence[str],
  passages: Sequence[str],
  entails: Entails,
  *,
  limit: int = LIMIT,
  published: bool = False,
) -> Scores | None:
  """Scores an answer (section 3 of the paper, its algorithm 1).

  A sentence without citations, or with one out of range, is not supported, and
  none of its citations counts. Of others the first `limit` count, and support
  it if their passages, joined by line breaks, entail it without its citations.
  A citation is needed if it is of such a sentence and is the only one, entails
  the sentence alone, or is missed by the rest; so of two passages that say the
  same both are needed.

  Args:
    sentences: of the answer, each with its citations.
    passages: of the context; "[1]" is the first.
    entails: the verifier, called on the passages' text and the sentence.
    limit: citations of a sentence that count.
    published: as the authors' scripts do it; see above.

  Returns:
    The scores; None with `published` for no sentences.

  Raises:
    ValueError: for a limit below 1.
  """
  if limit < 1:
    raise ValueError(f"{limit=} is not 1 or more.")
  if not sentences:
    return None if published else NOTHING
  supported = needed = total = 0
  for sentence in sentences:
    cited = parse_citations(sentence)
    if not published:
      cited = list(dict.fromkeys(cited))
    lowest = 0 if published else 1
    if not cited or not all(lowest <= n <= len(passages) for n in cited):
      continue
    texts = [passages[n - 1] for n in cited[:limit]]
    total += len(texts)
    claim = remove_citations(sentence)
    if not entails("\n".join(texts), claim):
      continue
    supported += 1
    needed += _needed(texts, claim, entails)
  precision = needed / total if total else 0.0
  recall = supported / len(sentences)
  return Scores(recall, precision, harmonic(recall, precision), total)


def answer_scores(
  answer: str,
  passages: Sequence[str],
  entails: Entails,
  split: Callable[[str], Sequence[str]],
  **options,
) -> Scores | None:
  """`citation_scores` of a text.

  Args:
    answer: the text.
    passages: of the context.
    entails: the verifier.
    split: from a text to its sentences, each with its citations; empty ones
      are left out.
    **options: limit and published.
  """
  sentences = [sentence for sentence in split(answer) if sentence.strip()]
  return citation_scores(sentences, passages, entails, **options)


def needle_scores(
  answer: str,
  passages: Sequence[str],
  needle: str,
  *,
  published: bool = False,
) -> Scores:
  """Scores the citations of a needle in a haystack (of the code only).

  The right passage is the first that has the needle. If the answer's first line
  cites it, recall is 1 and precision one by the number of its citations.

  Args:
    answer: a text, of which the first line counts.
    passages: of the context.
    needle: what is to be found.
    published: as the authors' scripts, where duplicates count.

  Raises:
    ValueError: if no passage has the needle.
  """
  right = next((n for n, p in enumerate(passages, 1) if needle in p), None)
  if right is None:
    raise ValueError(f"{needle=} is in none of {len(passages)} passages.")
  cited = parse_citations(answer.strip().partition("\n")[0])
  if not published:
    cited = list(dict.fromkeys(cited))
  if right not in cited:
    return NOTHING._replace(citations=len(cited))
  precision = 1 / len(cited)
  return Scores(1.0, precision, harmonic(1.0, precision), len(cited))


def mean(scores: Sequence[Scores | None]) -> Scores:
  """The mean of answers' scores; those that are None do not count.

  The mean of F1 is at most the mean of (precision + recall) / 2: a table where
  it is more has an error.

  Raises:
    ValueError: if none counts.
  """
  counted = [each for each in scores if each is not None]
  if not counted:
    raise ValueError(
      f"there is no mean of {len(scores)} scores, none a number."
    )
  return Scores(*(statistics.fmean(x) for x in zip(*counted, strict=True)))


def harmonic(first: float, second: float) -> float:
  """The harmonic mean of two shares; 0 if both are."""
  return 2 * first * second / (first + second) if first + second else 0.0


def _needed(texts: Sequence[str], claim: str, entails: Entails) -> int:
  """How many of the passages that entail a claim together are needed."""
  if len(texts) == 1:
    return 1
  return sum(
    entails(text, claim)
    or not entails("\n".join([*texts[:i], *texts[i + 1 :]]), claim)
    for i, text in enumerate(texts)
  )
