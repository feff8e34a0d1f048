"""Two tasks: repeat the token before, or recall what came with a key far away.

Ours, for "Flux Attention" (arXiv 2604.07394): a mixture of which one half needs
near tokens only.
"""

import dataclasses

import numpy as np

from input_pipeline import checks
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class NearAndFar:
  """Fillers, among them keys with values, and at the end `queries` labels.

  The first token says the task. Pairs of a key and its value stand between the
  token `lead` and the middle, whatever the task. "near": the last tokens are
  fillers, and each label is the token before. "far": they are keys that are
  there, each once, and the labels are their values.

  Attributes:
    length: tokens of a sequence.
    lead: how many first tokens are in no pair.
    pairs: of a sequence, with different keys.
    queries: last tokens that have a label.
    keys, values, fillers: numbers of such tokens.
  """

  length: int = 64
  lead: int = 8
  pairs: int = 4
  queries: int = 4
  keys: int = 16
  values: int = 16
  fillers: int = 16

  groups = ("near", "far")

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if one does not fit.
    """
    for field, least in (
      ("length", 8),
      ("lead", 1),
      ("pairs", 1),
      ("queries", 1),
      ("keys", 1),
      ("values", 1),
      ("fillers", 1),
    ):
      checks.check_integer(field, getattr(self, field), least)
    most = min(self.keys, (self.length // 2 - self.lead) // 2)
    if not self.queries <= self.pairs <= most:
      raise ValueError(
        f"pairs is {self.pairs}; it must be at least queries={self.queries} "
        f"and at most {most}, of which there are keys={self.keys} and room "
        f"between lead={self.lead} and the half of length={self.length}."
      )

  @property
  def vocabulary_size(self) -> int:
    """Two tokens for the tasks, then keys, values and fillers."""
    return 2 + self.keys + self.values + self.fillers

  @property
  def classes(self) -> int:
    """Labels are tokens."""
    return self.vocabulary_size

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes tokens, targets, weights and group; see `sources.Source`."""
    del split
    group = int(rng.integers(2))
    first_value = 2 + self.keys
    keys = 2 + rng.choice(self.keys, self.pairs, replace=False)
    values = first_value + rng.integers(self.values, size=self.pairs)
    tokens = first_value + self.values + rng.integers(
      self.fillers, size=self.length
    )
    tokens[0] = group
    room = self.length // 2 - self.lead - self.pairs
    # Where pairs begin, if each were one token; in order, then two apart.
    places = np.sort(rng.choice(room, self.pairs, replace=False))
    places += self.lead + np.arange(self.pairs)
    tokens[places], tokens[places + 1] = keys, values
    last = np.arange(self.length - self.queries, self.length)
    targets = np.zeros(self.length, np.int32)
    if group == 0:
      targets[last] = tokens[last - 1]
    else:
      asked = rng.permutation(self.pairs)[: self.queries]
      tokens[last], targets[last] = keys[asked], values[asked]
    weights = np.zeros(self.length, np.float32)
    weights[last] = 1
    return {
      "tokens": tokens.astype(np.int32),
      "targets": targets,
      "weights": weights,
      "group": np.int32(group),
    }
