"""Say a string of symbols backwards: an answer that is right as a whole or not.

For PassUntil (arXiv 2310.03262): a small model has every symbol right now and
then and the whole next to never, and there is one right answer, so that its
probability is known.
"""

import dataclasses

import numpy as np

from input_pipeline import checks
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class Reversal:
  """Symbols, the token 0, and the symbols from the last to the first.

  Labels are those of the second half; symbols are the tokens from 1.

  Attributes:
    length: symbols of a string.
    symbols: how many different ones there are.
  """

  length: int = 6
  symbols: int = 16
  groups = ()

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if one does not fit.
    """
    checks.check_integer("length", self.length, 1)
    checks.check_integer("symbols", self.symbols, 2)

  @property
  def vocabulary_size(self) -> int:
    """Symbols and the token between both halves."""
    return self.symbols + 1

  @property
  def classes(self) -> int:
    """Labels are tokens."""
    return self.vocabulary_size

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes tokens, targets and weights; see `sources.Source`."""
    del split
    string = rng.integers(1, self.vocabulary_size, self.length)
    whole = np.concatenate([string, [0], string[::-1]]).astype(np.int32)
    weights = np.zeros(2 * self.length, np.float32)
    weights[self.length :] = 1
    return {"tokens": whole[:-1], "targets": whole[1:], "weights": weights}
