"""Sentences that say fields of a record, each followed by the record as JSON.

Ours, the small check of schema scaffolding (arXiv 2507.04504): what is copied
from a sentence is told from what is made up.
"""

import dataclasses
import json
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline import checks
from input_pipeline.stream import Example

NULL_TEXT = "<none>"
_CHARACTERS = 128  # ASCII; then the null token and the one that ends a text.
# Of names, and of values: what is a value can be seen of each token.
_SMALL, _CAPITAL = string.ascii_lowercase, string.ascii_uppercase
_FLAGS = {False: "-", True: "+"}
_FILLER = "_"  # Stands for a null; neither names nor values have it.


class Record(NamedTuple):
  """What an example is about.

  Attributes:
    sentence: that says some of the fields, as "pet XYU,job ABQ".
    values: of all fields; "" for those that it does not say.
    padded: whether values are to be filled up with nulls.
  """

  sentence: str
  values: Mapping[str, str]
  padded: bool


@dataclasses.dataclass(frozen=True)
class Records:
  """Sentence and flat JSON, of which the JSON is to be told.

  A flag comes first. With "-" the JSON has its values as they are, "" for what
  the sentence does not say, and the row is filled up with ends. With "+", one
  half of the examples, all values are filled up with null tokens to `budget`:
  the convention that a schema's null stands for, which a small model has to
  have seen, as it follows no instruction. Values are random capital
  letters, so that nothing but the sentence tells them. A small model learns
  sooner to copy few kinds of letters than many.

  Attributes:
    fields: names of the record, letters.
    least: of fields that a sentence says.
    most: likewise.
    budget: the longest value.
    letters: how many of the capital letters are in values, from "A" on.
  """

  fields: Sequence[str] = ("who", "job", "pet", "hat")
  least: int = 1
  most: int = 3
  budget: int = 5
  letters: int = len(_CAPITAL)
  groups = ()

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if one does not fit.
    """
    unlike = len(set(self.fields)) < len(self.fields)
    if not self.fields or unlike or not all(map(_is_name, self.fields)):
      raise ValueError(
        f"fields is {self.fields!r}; it must be different names of the letters "
        "a to z."
      )
    checks.check_integer("least", self.least, 0)
    checks.check_integer("most", self.most, max(1, self.least))
    checks.check_integer("budget", self.budget, 1)
    checks.check_integer("letters", self.letters, 1)
    if self.letters > len(_CAPITAL):
      raise ValueError(
        f"letters is {self.letters}, but the alphabet has {len(_CAPITAL)}."
      )
    if self.most > len(self.fields):
      raise ValueError(
        f"most is {self.most}, more than the {len(self.fields)} fields."
      )

  @property
  def vocabulary_size(self) -> int:
    """ASCII, the null token and the end."""
    return _CHARACTERS + 2

  @property
  def classes(self) -> int:
    """What is told is tokens."""
    return self.vocabulary_size

  @property
  def null(self) -> int:
    """The token that fills a value up."""
    return _CHARACTERS

  @property
  def end(self) -> int:
    """The token after a text."""
    return _CHARACTERS + 1

  @property
  def texts(self) -> tuple[str, ...]:
    """What each token stands for; the end for nothing."""
    return (*map(chr, range(_CHARACTERS)), NULL_TEXT, "")

  @property
  def prompt_length(self) -> int:
    """Tokens of a flag and the longest sentence."""
    names = sorted(map(len, self.fields))[-self.most :]
    # Name, space, value, comma.
    return 1 + sum(names) + self.most * (self.budget + 2) - 1

  @property
  def output_length(self) -> int:
    """Tokens of a JSON with values of `budget` tokens."""
    record = {name: "x" * self.budget for name in self.fields}
    return len(to_json(record))

  def draw(self, rng: np.random.Generator) -> Record:
    """Draws a record."""
    count = rng.integers(self.least, self.most + 1)
    said = rng.permutation(len(self.fields))[:count]
    values = dict.fromkeys(self.fields, "")
    for i in said:
      letters = rng.integers(self.letters, size=rng.integers(self.budget) + 1)
      values[self.fields[i]] = "".join(_CAPITAL[n] for n in letters)
    names = [self.fields[i] for i in said]
    sentence = ",".join(f"{name} {values[name]}" for name in names)
    return Record(sentence, values, bool(rng.integers(2)))

  def encode(self, text: str) -> list[int]:
    """The tokens of ASCII text, one a character.

    Raises:
      ValueError: for other characters.
    """
    if not text.isascii():
      raise ValueError(f"text={text!r} has characters that are not ASCII.")
    return list(text.encode())

  def prompt(self, sentence: str, *, padded: bool) -> np.ndarray:
    """The flag, a sentence and ends, int32 [prompt_length].

    Raises:
      ValueError: for a sentence that is too long or not ASCII.
    """
    tokens = self.encode(_FLAGS[padded] + sentence)
    if len(tokens) > self.prompt_length:
      raise ValueError(
        f"sentence={sentence!r} has {len(sentence)} characters, but there is "
        f"room for {self.prompt_length - 1}."
      )
    return _filled(tokens, self.prompt_length, self.end)

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of tokens up to the first end."""
    texts, text = self.texts, ""
    for token in tokens:
      if token == self.end:
        break
      text += texts[token]
    return text

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes tokens, the same as targets, and weights 1 where they are JSON."""
    del split
    record = self.draw(rng)
    values = record.values
    if record.padded:
      values = {
        name: value.ljust(self.budget, _FILLER)
        for name, value in values.items()
      }
    output = [
      self.null if token == ord(_FILLER) else token
      for token in self.encode(to_json(values))
    ]
    tokens = np.concatenate(
      [
        self.prompt(record.sentence, padded=record.padded),
        _filled(output, self.output_length, self.end),
      ]
    )
    weights = np.arange(len(tokens)) >= self.prompt_length
    return {
      "tokens": tokens,
      "targets": tokens.copy(),
      "weights": weights.astype(np.float32),
    }


def to_json(values: Mapping[str, str]) -> str:
  """A record as text, as `generation.template_decoding` lays it out."""
  return json.dumps(values, indent=2)


def _is_name(text: str) -> bool:
  return bool(text) and set(text) <= set(_SMALL)


def _filled(tokens: Sequence[int], length: int, end: int) -> np.ndarray:
  return np.array([*tokens, *[end] * (length - len(tokens))], np.int32)
