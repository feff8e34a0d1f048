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

  The first token says the task. Pairs, each of a key and a value and one token,
  stand between the token `lead` and the end of the first third, whatever the
  task. "near": the last tokens are fillers, and each label is the token before.
  "far": they are keys that are there, and the labels are their values.

  Attributes:
    length: tokens of a sequence.
    lead: how many first tokens are no pairs.
    pairs: of a sequence, with different keys.
    queries: last tokens that have a label, at most half of them.
    keys, values, fillers: numbers of such tokens; pairs have keys * values.
  """

  length: int = 64
  lead: int = 4
  pairs: int = 4
  queries: int = 24
  keys: int = 8
  values: int = 8
  fillers: int = 8

  groups = ("near", "far")

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if one does not fit.
    """
    checks.check_integer("length", self.length, 8)
    for field in ("lead", "pairs", "queries", "keys", "values", "fillers"):
      checks.check_integer(field, getattr(self, field), 1)
    most = min(self.keys, self.length // 3 - self.lead)
    if self.pairs > most:
      raise ValueError(
        f"pairs is {self.pairs}; it must be at most {most}: there are "
        f"keys={self.keys}, and a third of length={self.length} without "
        f"lead={self.lead} has room."
      )
    if self.queries > self.length // 2:
      raise ValueError(
        f"queries is {self.queries}; it must be at most {self.length // 2}, "
        f"the half of length={self.length}."
      )

  @property
  def vocabulary_size(self) -> int:
    """Two tokens for the tasks, then fillers, keys, values and pairs."""
    return self._first_pair + self.keys * self.values

  @property
  def classes(self) -> int:
    """Labels are tokens."""
    return self.vocabulary_size

  @property
  def _first_key(self) -> int:
    return 2 + self.fillers

  @property
  def _first_value(self) -> int:
    return self._first_key + self.keys

  @property
  def _first_pair(self) -> int:
    return self._first_value + self.values

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes tokens, targets, weights and group; see `sources.Source`."""
    del split
    group = int(rng.integers(2))
    keys = rng.choice(self.keys, self.pairs, replace=False)
    values = rng.integers(self.values, size=self.pairs)
    tokens = 2 + rng.integers(self.fillers, size=self.length)
    tokens[0] = group
    room = self.length // 3 - self.lead
    places = self.lead + rng.choice(room, self.pairs, replace=False)
    tokens[places] = self._first_pair + keys * self.values + values
    last = np.arange(self.length - self.queries, self.length)
    targets = np.zeros(self.length, np.int32)
    if group == 0:
      targets[last] = tokens[last - 1]
    else:
      asked = rng.integers(self.pairs, size=self.queries)
      tokens[last] = self._first_key + keys[asked]
      targets[last] = self._first_value + values[asked]
    weights = np.zeros(self.length, np.float32)
    weights[last] = 1
    return {
      "tokens": tokens.astype(np.int32),
      "targets": targets,
      "weights": weights,
      "group": np.int32(group),
    }
