"""Which of the sentences holds the marked word?

A task for attention on trees, as the first of "Hierarchical Self-Attention"
(arXiv 2509.15448) are texts of sentences; the words are ours.
"""

import dataclasses

import numpy as np

from input_pipeline import checks
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class MarkedWord:
  """Sentences that begin with their names, one of which has the marked word.

  The label of the sequence is that name. Token 0 is the marked word, names are
  the tokens from 1 to `names`, drawn without replacement, and all others are
  words that say nothing. Sentences have any lengths that add up to `length`,
  but at least 3.

  Attributes:
    length: tokens of a sequence.
    sentences: how many there are.
    names: how many names there are, the classes.
    vocabulary_size: number of tokens.
    segments: whether an example says which sentence a token is in.
  """

  length: int = 64
  sentences: int = 8
  names: int = 8
  vocabulary_size: int = 64
  segments: bool = False
  groups = ()

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if one does not fit.
    """
    checks.check_integer("sentences", self.sentences, 2)
    checks.check_integer("names", self.names, self.sentences)
    checks.check_integer("length", self.length, 3 * self.sentences)
    checks.check_integer(
      "vocabulary_size", self.vocabulary_size, self.names + 2
    )

  @property
  def classes(self) -> int:
    """Labels are names."""
    return self.names

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes tokens, targets [1], weights [1] and, if asked for, segments."""
    del split
    # Where the rest of the tokens is cut is as likely anywhere.
    rest = self.length - 3 * self.sentences
    cuts = np.sort(rng.integers(rest + 1, size=self.sentences - 1))
    lengths = 3 + np.diff(np.concatenate([[0], cuts, [rest]]))
    starts = np.cumsum(lengths) - lengths
    words = self.names + 1, self.vocabulary_size
    tokens = rng.integers(*words, self.length).astype(np.int32)
    names = rng.choice(self.names, self.sentences, replace=False)
    tokens[starts] = 1 + names
    which = rng.integers(self.sentences)
    tokens[starts[which] + rng.integers(1, lengths[which])] = 0
    example = {
      "tokens": tokens,
      "targets": names[[which]].astype(np.int32),
      "weights": np.ones(1, np.float32),
    }
    if self.segments:
      number = np.repeat(np.arange(self.sentences), lengths)
      example["segments"] = number.astype(np.int32)
    return example
