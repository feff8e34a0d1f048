"""Questions about handwritten digits on a grid, with answers of one word."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline import digits
from input_pipeline.stream import Example

SIDE = 8  # Of a digit in pixels.
KINDS = ("which", "how_many", "is_there")
# "present" and "absent" are of "is_there": how often an absent digit is said
# to be there is the rate of hallucination.
GROUPS = ("which", "how_many", "present", "absent")
_WORDS = ("which", "row", "column", "how_many", "is_there", "?", "yes", "no")


@dataclasses.dataclass(frozen=True)
class DigitsGrid:
  """An image of digits, and questions in a row, each followed by its answer.

  - "which row 1 column 3 ? 7": rows and columns are counted from 0;
  - "how_many 7 ? 2";
  - "is_there 7 ? no": one half of them are of digits that are not there.

  The digits of an image are of some classes only, 3 to 8, so that there are
  others which it lacks. Only answers are targets. A question sees those before
  it and their answers, as in a conversation.

  Attributes:
    side: digits in a row of the grid, and rows; 9 at most.
    questions: of an example.
    kinds: of KINDS, of which each question is one by chance.
  """

  side: int = 4
  questions: int = 6
  kinds: Sequence[str] = KINDS

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: for a field that does not fit.
    """
    if not 1 <= self.side <= 9:
      raise ValueError(f"side is {self.side}, but it must be from 1 to 9.")
    if self.questions < 1:
      raise ValueError(
        f"questions is {self.questions}, but it must be positive."
      )
    if not self.kinds or not set(self.kinds) <= set(KINDS):
      raise ValueError(
        f"kinds is {self.kinds!r}, but it must have some of {', '.join(KINDS)}."
      )

  @property
  def words(self) -> tuple[str, ...]:
    """What each token stands for: the numbers there may be, and words."""
    most = max(9, self.side**2)
    return (*map(str, range(most + 1)), *_WORDS)

  @property
  def vocabulary_size(self) -> int:
    """Words there are."""
    return len(self.words)

  @property
  def classes(self) -> int:
    """Labels are words."""
    return self.vocabulary_size

  @property
  def groups(self) -> tuple[str, ...]:
    """Of which an answer is."""
    return GROUPS

  @property
  def length(self) -> int:
    """Tokens of a row, were all questions of the longest kind."""
    return 7 * self.questions

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Draws an image, questions and answers; see `sources.Source`.

    The row ends with words "?" that ask nothing, where questions are short.
    """
    pixels, labels = digits.load("test" if split == "eval" else split)
    classes = rng.permutation(10)[: rng.integers(3, 9)]
    fitting = np.flatnonzero(np.isin(labels, classes))
    chosen = fitting[rng.integers(len(fitting), size=self.side**2)]
    # [rows, columns, 8, 8] -> [rows, 8, columns, 8]
    image = pixels[chosen].reshape(self.side, self.side, SIDE, SIDE)
    image = image.swapaxes(1, 2).reshape(self.side * SIDE, -1, 1)
    grid = labels[chosen].reshape(self.side, self.side)

    number = {word: i for i, word in enumerate(self.words)}
    tokens = np.full(self.length + 1, number["?"], np.int32)
    group = np.zeros(self.length, np.int32)
    weights = np.zeros(self.length, np.float32)
    place = 0
    for _ in range(self.questions):
      question, answer, kind = self._ask(rng, grid)
      asked = [number[word] for word in (*question, "?", answer)]
      tokens[place : place + len(asked)] = asked
      place += len(asked)
      # The answer is what follows the last word of the question.
      weights[place - 2] = 1.0
      group[place - 2] = GROUPS.index(kind)
    return {
      "image": np.round(image * (255 / 16)).astype(np.uint8),
      "tokens": tokens[:-1],
      "targets": tokens[1:],
      "weights": weights,
      "group": group,
    }

  def _ask(
    self, rng: np.random.Generator, grid: np.ndarray
  ) -> tuple[tuple[str, ...], str, str]:
    """Draws a question: its words, the answer and its group."""
    kind = self.kinds[rng.integers(len(self.kinds))]
    if kind == "which":
      row, column = rng.integers(self.side, size=2)
      words = (kind, "row", str(row), "column", str(column))
      return words, str(grid[row, column]), kind
    counts = np.bincount(grid.ravel(), minlength=10)
    if kind == "how_many":
      digit = rng.integers(10)
      return (kind, str(digit)), str(counts[digit]), kind
    # Of the digits that are there or of those that are not.
    there = bool(rng.integers(2))
    digit = rng.choice(np.flatnonzero((counts > 0) == there))
    answer = ("yes", "present") if there else ("no", "absent")
    return (kind, str(digit)), *answer
