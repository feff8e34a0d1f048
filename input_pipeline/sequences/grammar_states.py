"""SelectivBench: the hidden state of a grammar at each symbol, across gaps.

"Dissecting Linear Recurrent Models" (arXiv 2601.12598). Other than there, no
example to train on is made of the numbers of one to evaluate, and gaps and
noise follow from the example's number too.
"""

import dataclasses

import numpy as np

from input_pipeline import checks
from input_pipeline.sequences import grammar
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class GrammarStates:
  """Symbols of a grammar, each followed by a gap; labels are its states.

  A symbol is a step of one-hot numbers; a gap is steps of zeros, or of symbols
  that cannot follow. The label of all these steps is the state: class 0 is the
  end mark, which is a symbol as others are.

  Attributes:
    vocabulary_size: symbols, with the end mark.
    ambiguities: how many symbols are split into states.
    depth: states of one that is split.
    density: of transitions, see `grammar.make`.
    starts: states that a string may begin with.
    grammar_seed: of the grammar, the same in training and evaluation.
    elements: symbols of a sequence, whose last string is cut.
    gaps: steps of a gap, from and to: a uniform number between, rounded, so
      that both ends are half as likely (the paper's delays are of 0.1 a step).
    gap_probability: of an element to have a gap.
    gap_start: elements without one at the beginning.
    wrong_symbols: whether gaps have symbols that cannot follow, not blanks.
    noise: upper end of uniform noise that is added to all numbers.
    length: steps of a row, of which what is beyond is cut off and what is left
      has no weight; 0 for as many as there can be.
  """

  vocabulary_size: int = 41
  ambiguities: int = 40
  depth: int = 40
  density: float = 0.4
  starts: int = 4
  grammar_seed: int = 0
  elements: int = 200
  gaps: tuple[int, int] = (1, 1)
  gap_probability: float = 1.0
  gap_start: int = 0
  wrong_symbols: bool = False
  noise: float = 0.0
  length: int = 0

  groups = ()

  def __post_init__(self):
    """Checks the fields, and makes the grammar.

    Raises:
      ValueError: if a field does not fit.
    """
    checks.check_integer("vocabulary_size", self.vocabulary_size, 2)
    checks.check_integer("ambiguities", self.ambiguities, 0)
    if self.ambiguities >= self.vocabulary_size:
      raise ValueError(
        f"ambiguities is {self.ambiguities}, but of vocabulary_size="
        f"{self.vocabulary_size} symbols the end mark cannot be split."
      )
    for name in ("depth", "starts", "elements"):
      checks.check_integer(name, getattr(self, name), 1)
    for name in ("grammar_seed", "gap_start", "length"):
      checks.check_integer(name, getattr(self, name), 0)
    for name in ("density", "gap_probability"):
      checks.check_number(name, getattr(self, name), 1.0)
    checks.check_number("noise", self.noise)
    if len(self.gaps) != 2 or not 0 <= self.gaps[0] <= self.gaps[1]:
      raise ValueError(
        f"gaps is {self.gaps}, but it must be two numbers of steps, the second "
        "at least the first, as (1, 10)."
      )
    if self.starts >= self.classes:
      raise ValueError(
        f"starts is {self.starts}, but a grammar of {self.classes} states has "
        "at most one fewer."
      )
    full = [s for s, wrong in enumerate(self.grammar.wrong) if not len(wrong)]
    if self.wrong_symbols and full:
      raise ValueError(
        f"wrong_symbols is True, but state {full[0]} of this grammar can be "
        "followed by all symbols: give another grammar_seed or more symbols."
      )

  @property
  def classes(self) -> int:
    """States, that of the end mark included."""
    split = self.ambiguities * (self.depth - 1)
    return self.vocabulary_size + split

  @property
  def grammar(self) -> grammar.Grammar:
    """The grammar of these fields."""
    return grammar.make(
      self.vocabulary_size,
      self.ambiguities,
      self.depth,
      self.density,
      self.starts,
      self.grammar_seed,
    )

  @property
  def steps(self) -> int:
    """Steps of a row."""
    return self.length or self.elements * (1 + self.gaps[1])

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes inputs, targets, weights and elements; see `sources.Source`.

    The number of the element that a step is of is -1 behind the last.
    """
    del split
    states = self.grammar.sequence(rng, self.elements)
    gaps = np.rint(rng.uniform(*self.gaps, self.elements)).astype(int)
    gaps[rng.random(self.elements) >= self.gap_probability] = 0
    gaps[: self.gap_start] = 0
    element = np.repeat(np.arange(self.elements), gaps + 1)
    is_gap = np.diff(element, prepend=-1) == 0
    of_step = states[element]
    shown = np.where(is_gap, -1, self.grammar.symbols[of_step])
    if self.wrong_symbols:
      shown[is_gap] = [
        rng.choice(self.grammar.wrong[s]) for s in of_step[is_gap]
      ]
    size = min(len(element), self.steps)
    inputs = np.zeros((self.steps, self.vocabulary_size), np.float32)
    there = np.flatnonzero(shown[:size] >= 0)
    inputs[there, shown[there]] = 1
    if self.noise:
      inputs += rng.uniform(0, self.noise, inputs.shape).astype(np.float32)
    return {
      "inputs": inputs,
      "targets": self._padded(of_step, 0),
      "weights": self._padded(np.ones(len(element), np.float32), 0),
      "elements": self._padded(element, -1),
    }

  def _padded(self, x: np.ndarray, nothing: int) -> np.ndarray:
    dtype = x.dtype if x.dtype == np.float32 else np.int32
    out = np.full(self.steps, nothing, dtype)
    out[: min(len(x), self.steps)] = x[: self.steps]
    return out
