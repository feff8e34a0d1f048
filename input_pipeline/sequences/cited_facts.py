"""What is the value of a key, and which of the numbered passages says so?

For the check of L-CiteEval (arXiv 2410.02115) that is ours: half of the keys
have a value that never changes, and can be known by heart; the values of the
others are new in each context.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline import checks
from input_pipeline.stream import Example

PADDING, ASK, END = range(3)
# Tokens of a passage.
PASSAGE = 4


@dataclasses.dataclass(frozen=True)
class CitedFacts:
  """Passages of key, value, number and END, then questions with answers.

  A question is the token ASK and a key; its answer the value, the number of its
  passage, and END, which are the labels. Passages have different keys, any of
  all, and are numbered in their order; numbers are behind, so that an answer is
  a copy, which small models learn soon. A row ends with padding.

  Attributes:
    passages: the least and the most of a context; in between all powers of two
      times the least are as likely.
    questions: of a row, on different keys where there are as many.
    keys: how many there are; the values of the first half are constant.
    values: how many there are.
    constants_seed: of the constant values.
  """

  passages: tuple[int, int] = (4, 16)
  questions: int = 8
  keys: int = 32
  values: int = 32
  constants_seed: int = 0
  groups = ("fresh", "constant")

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if one does not fit.
    """
    least, most = self.passages
    checks.check_integer("passages[0]", least, 1)
    checks.check_integer("passages[1]", most, least)
    checks.check_integer("questions", self.questions, 1)
    checks.check_integer("keys", self.keys, most)
    checks.check_integer("values", self.values, 2)

  @property
  def vocabulary_size(self) -> int:
    """Three marks, numbers of passages, keys and values."""
    return self.first_value + self.values

  @property
  def classes(self) -> int:
    """Labels are tokens."""
    return self.vocabulary_size

  @property
  def first_key(self) -> int:
    """The token of key 0; passage n has the token END + n."""
    return END + 1 + self.passages[1]

  @property
  def first_value(self) -> int:
    """The token of value 0."""
    return self.first_key + self.keys

  @property
  def constants(self) -> np.ndarray:
    """The values of the first half of keys, int64 [keys // 2]."""
    rng = np.random.default_rng(self.constants_seed)
    return rng.integers(self.values, size=self.keys // 2)

  def facts(
    self, rng: np.random.Generator, count: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws keys and values of a context, int64 [count] each."""
    keys = rng.choice(self.keys, count, replace=False)
    return keys, self.values_of(rng, keys)

  def values_of(self, rng: np.random.Generator, keys: np.ndarray) -> np.ndarray:
    """Values of keys: constant for the first half, drawn for others."""
    drawn = rng.integers(self.values, size=len(keys))
    constants = np.concatenate([self.constants, np.zeros(self.keys, np.int64)])
    return np.where(keys < self.keys // 2, constants[keys], drawn)

  def context(self, keys: Sequence[int], values: Sequence[int]) -> list[int]:
    """Tokens of passages, `PASSAGE` each."""
    return [
      token
      for number, (key, value) in enumerate(zip(keys, values, strict=True), 1)
      for token in (
        self.first_key + int(key),
        self.first_value + int(value),
        END + number,
        END,
      )
    ]

  def question(self, key: int) -> list[int]:
    """Tokens of a question."""
    return [ASK, self.first_key + int(key)]

  def text(self, tokens: Sequence[int]) -> str:
    """Words of tokens, as "k3 v17 [2]"; marks and padding are left out."""
    words = []
    for token in tokens:
      if token >= self.first_value:
        words.append(f"v{token - self.first_value}")
      elif token >= self.first_key:
        words.append(f"k{token - self.first_key}")
      elif token > END:
        words.append(f"[{token - END}]")
    return " ".join(words)

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes tokens, targets, weights and group; see `sources.Source`."""
    del split
    least, most = self.passages
    doublings = int(np.log2(most / least) + 1e-9)
    count = least << int(rng.integers(doublings + 1))
    keys, values = self.facts(rng, count)
    row = self.context(keys, values)
    labelled = []
    asked = rng.permutation(-(-self.questions // count) * count) % count
    for n in asked[: self.questions].tolist():
      row += self.question(keys[n])
      group = int(keys[n] < self.keys // 2)
      labelled += [(place, group) for place in range(len(row), len(row) + 3)]
      row += [self.first_value + int(values[n]), END + n + 1, END]
    length = PASSAGE * most + 5 * self.questions
    whole = np.full(length, PADDING, np.int32)
    whole[: len(row)] = row
    places, groups = np.array(labelled).T
    weights = np.zeros(length - 1, np.float32)
    weights[places - 1] = 1
    group = np.zeros(length - 1, np.int32)
    group[places - 1] = groups
    return {
      "tokens": whole[:-1],
      "targets": whole[1:],
      "weights": weights,
      "group": group,
    }
