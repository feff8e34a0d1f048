"""Questions about handwritten digits on a grid, with answers in words."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline import digits
from input_pipeline.stream import Example

SIDE = 8  # Of a digit in pixels.
KINDS = ("which", "how_many", "is_there")
LIST = "list"
# Of the answer to "list", after its digits.
END = "end"
# "present" and "absent" are of "is_there": how often an absent digit is said
# to be there is the rate of hallucination.
GROUPS = ("which", "how_many", "present", "absent")
_WORDS = ("which", "row", "column", "how_many", "is_there", "?", "yes", "no")
# An image has digits of this many classes at most.
_CLASSES = 8


class Asked(NamedTuple):
  """A question.

  Attributes:
    words: of the question.
    answer: words.
    group: of `DigitsGrid.groups`.
  """

  words: tuple[str, ...]
  answer: tuple[str, ...]
  group: str


@dataclasses.dataclass(frozen=True)
class DigitsGrid:
  """An image of digits, and questions in a row, each followed by its answer.

  - "which row 1 column 3 ? 7": rows and columns are counted from 0;
  - "how_many 7 ? 2";
  - "is_there 7 ? no": one half of them are of digits that are not there;
  - "list ? 0 3 7 end": which digits there are, in ascending order. It ends its
    row, as what follows would be told by it.

  The digits of an image are of some classes only, 3 to 8, so that there are
  others which it lacks. Only answers are targets. A question sees those before
  it and their answers, as in a conversation.

  Attributes:
    side: digits in a row of the grid, and rows; 9 at most.
    questions: of an example, at most.
    kinds: of KINDS and "list", of which each question is one by chance.
    listing: whether there are words for "list", which needs them. The
      vocabulary is another with them, so they are the same in all data of a
      model.
    repeats: whether an image may be asked the same twice, which can be answered
      from the text.
    terse: whether a question is two words and the answer follows the second,
      which names all that is asked for: "which row_1_column_3 7", "how_many 7
      2", "is_there 7 no", and "list 0 3 7 end" has one. A model that has not to
      gather a place from words before finds it in the image far sooner.
    preamble: how many words "?" that ask nothing may stand before the image: by
      chance none, or as many as this, or any number between.
  """

  side: int = 4
  questions: int = 6
  kinds: Sequence[str] = KINDS
  listing: bool = False
  repeats: bool = True
  terse: bool = False
  preamble: int = 0

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
    if self.preamble < 0:
      raise ValueError(
        f"preamble is {self.preamble}, but it must be 0 or more."
      )
    known = (*KINDS, LIST) if self.listing else KINDS
    if not self.kinds or not set(self.kinds) <= set(known):
      raise ValueError(
        f"kinds is {self.kinds!r}, but it must have some of "
        f"{', '.join(known)}"
        + ("." if self.listing else ", and with listing=True of list.")
      )
    if not self.repeats and self.questions > self._different():
      raise ValueError(
        f"questions is {self.questions}, but with repeats=False and "
        f"kinds={self.kinds!r} there are {self._different()} different ones."
      )

  @property
  def words(self) -> tuple[str, ...]:
    """What each token stands for: the numbers there may be, and words."""
    most = max(9, self.side**2)
    words = (*map(str, range(most + 1)), *_WORDS)
    if self.listing:
      words += (LIST, END)
    if self.terse:
      places = itertools.product(range(self.side), repeat=2)
      words += tuple(_place(row, column) for row, column in places)
    return words

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
    return (*GROUPS, LIST) if self.listing else GROUPS

  @property
  def length(self) -> int:
    """Tokens of a row, were all questions of the longest kind."""
    others = set(self.kinds) != {LIST}
    last = LIST in self.kinds
    longest = 3 if self.terse else 7
    # "list", digits and the end.
    list_length = (not self.terse) + 2 + min(_CLASSES, self.side**2)
    list_length *= last
    return self.preamble + max(
      longest * self.questions * others,
      longest * (self.questions - 1) * others + list_length,
    )

  def draw(
    self, rng: np.random.Generator, split: str
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws an image of the digits of a split, "train" or "eval".

    Returns:
      (image, grid): uint8 [8 side, 8 side, 1], and the digits that are on it,
      integers [side, side].
    """
    pixels, labels = digits.load("test" if split == "eval" else split)
    classes = rng.permutation(10)[: rng.integers(3, _CLASSES + 1)]
    fitting = np.flatnonzero(np.isin(labels, classes))
    chosen = fitting[rng.integers(len(fitting), size=self.side**2)]
    # [rows, columns, 8, 8] -> [rows, 8, columns, 8]
    image = pixels[chosen].reshape(self.side, self.side, SIDE, SIDE)
    image = image.swapaxes(1, 2).reshape(self.side * SIDE, -1, 1)
    grid = labels[chosen].reshape(self.side, self.side)
    return np.round(image * (255 / 16)).astype(np.uint8), grid

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Draws an image, questions and answers; see `sources.Source`.

    The row ends with words "?" that ask nothing, where questions are short.
    """
    image, grid = self.draw(rng, split)
    number = {word: i for i, word in enumerate(self.words)}
    tokens = np.full(self.length + 1, number["?"], np.int32)
    group = np.zeros(self.length, np.int32)
    weights = np.zeros(self.length, np.float32)
    place, before = 0, {}
    if self.preamble:
      place = int(rng.integers(self.preamble + 1))
      before = {"image_start": np.int32(place)}
    for asked in self._conversation(rng, grid):
      words = (*asked.words, *asked.answer)
      tokens[place : place + len(words)] = [number[word] for word in words]
      place += len(words)
      # A word of the answer is what follows the word before it.
      answer = slice(place - 1 - len(asked.answer), place - 1)
      weights[answer] = 1.0
      group[answer] = self.groups.index(asked.group)
    return {
      "image": image,
      "tokens": tokens[:-1],
      "targets": tokens[1:],
      "weights": weights,
      "group": group,
      **before,
    }

  def _conversation(
    self, rng: np.random.Generator, grid: np.ndarray
  ) -> list[Asked]:
    """Draws the questions of a row."""
    result, words = [], set()
    while len(result) < self.questions:
      asked = self.ask(rng, grid)
      if not self.repeats and asked.words in words:
        continue
      result.append(asked)
      words.add(asked.words)
      if asked.group == LIST:
        break
    return result

  def ask(self, rng: np.random.Generator, grid: np.ndarray) -> Asked:
    """Draws a question about a grid, integers [side, side]."""
    end = () if self.terse else ("?",)
    kind = self.kinds[rng.integers(len(self.kinds))]
    if kind == "which":
      row, column = rng.integers(self.side, size=2)
      words = ("row", str(row), "column", str(column))
      if self.terse:
        words = (_place(row, column),)
      return Asked((kind, *words, *end), (str(grid[row, column]),), kind)
    if kind == LIST:
      there = map(str, np.unique(grid))
      return Asked((kind, *end), (*there, END), kind)
    counts = np.bincount(grid.ravel(), minlength=10)
    if kind == "how_many":
      digit = rng.integers(10)
      return Asked((kind, str(digit), *end), (str(counts[digit]),), kind)
    # Of the digits that are there or of those that are not.
    there = bool(rng.integers(2))
    digit = rng.choice(np.flatnonzero((counts > 0) == there))
    answer, group = ("yes", "present") if there else ("no", "absent")
    return Asked((kind, str(digit), *end), (answer,), group)

  def _different(self) -> int:
    """How many questions there are for an image."""
    each = {"which": self.side**2, "how_many": 10, "is_there": 10, LIST: 1}
    return sum(each[kind] for kind in set(self.kinds))


def _place(row: int, column: int) -> str:
  return f"row_{row}_column_{column}"
