"""Multi-query associative recall: which value came with this key?

Arora et al., "Zoology" (arXiv 2312.04927, section 4) and "Based" (2402.18668,
appendix E.1).
"""

import dataclasses

import numpy as np

from input_pipeline import checks
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class MultiQueryRecall:
  """Keys with values, and later each key once more: its value is the label.

  A sequence is k1 v1 ... kn vn and then queries. Keys are tokens from 1 to the
  half of the vocabulary, values from there on, both drawn without replacement.
  A key is asked for at 2g places after the pairs, its gap g drawn without
  replacement with a probability proportional to (g + 1)^(power - 1), so most
  are asked for soon. All other places there have random tokens, keys and values
  among them, or zeros.

  Attributes:
    length: tokens of a sequence, even.
    pairs: numbers n of pairs, of which an example has one; its group.
    vocabulary_size: number of tokens.
    power: of the law of gaps; 1 is uniform.
    random_non_queries: whether tokens between queries are random.
  """

  length: int = 64
  pairs: tuple[int, ...] = (4,)
  vocabulary_size: int = 8192
  power: float = 0.01
  random_non_queries: bool = True

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if one does not fit.
    """
    checks.check_integer("length", self.length, 4)
    checks.check_integer("vocabulary_size", self.vocabulary_size, 4)
    if self.length % 2:
      raise ValueError(f"length is {self.length}, but it must be even.")
    most = min(self.length // 4, self.vocabulary_size // 2 - 1)
    if not self.pairs or not all(1 <= n <= most for n in self.pairs):
      raise ValueError(
        f"pairs is {self.pairs}, but each must be from 1 to {most}: 4 n <= "
        f"length={self.length}, and there are vocabulary_size // 2 - 1 = "
        f"{self.vocabulary_size // 2 - 1} keys."
      )
    checks.check_number("power", self.power)

  @property
  def classes(self) -> int:
    """Labels are tokens."""
    return self.vocabulary_size

  @property
  def groups(self) -> tuple[str, ...]:
    """Numbers of pairs, as "4_pairs"."""
    return tuple(f"{n}_pairs" for n in self.pairs)

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes tokens, targets, weights and group; see `sources.Source`."""
    del split
    group = int(rng.integers(len(self.pairs)))
    n = self.pairs[group]
    half = self.vocabulary_size // 2
    keys = 1 + rng.choice(half - 1, n, replace=False)
    values = half + rng.choice(self.vocabulary_size - half, n, replace=False)
    law = np.arange(1, (self.length - 2 * n) // 2 + 1) ** (self.power - 1.0)
    gaps = rng.choice(len(law), n, replace=False, p=law / law.sum())
    places = 2 * n + 2 * gaps
    tokens = np.zeros(self.length, np.int32)
    if self.random_non_queries:
      tokens[2 * n :] = rng.integers(self.vocabulary_size, size=len(law) * 2)
    tokens[: 2 * n : 2], tokens[1 : 2 * n : 2] = keys, values
    tokens[places] = keys
    targets = np.zeros(self.length, np.int32)
    targets[places] = values
    weights = np.zeros(self.length, np.float32)
    weights[places] = 1
    return {
      "tokens": tokens,
      "targets": targets,
      "weights": weights,
      "group": np.int32(group),
    }
