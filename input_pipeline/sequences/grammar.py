"""Random grammars: automata whose states hide behind the symbols they emit.

SymSeqBench (arXiv 2512.24977), which SelectivBench (arXiv 2601.12598) draws its
sequences of; the rules are those of its generator.
"""

import dataclasses
import functools

import numpy as np

# State and symbol at the end of a string.
END = 0
_MOST_TRIES = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
  """A deterministic automaton: state and next symbol say the next state.

  Attributes:
    symbols: the symbol of each state [states].
    successors: the state after a state and a symbol [states, symbols], -1 where
      that symbol cannot follow. Those that can are equally likely.
    starts: states a string may begin with, equally likely, [starts].
  """

  symbols: np.ndarray
  successors: np.ndarray
  starts: np.ndarray

  @functools.cached_property
  def after(self) -> np.ndarray:
    """`successors`, where after the end the next string begins."""
    table = self.successors.copy()
    table[END, self.symbols[self.starts]] = self.starts
    return table

  @functools.cached_property
  def wrong(self) -> list[np.ndarray]:
    """Symbols that cannot follow each state, the end mark left out."""
    return [np.flatnonzero(row[1:] < 0) + 1 for row in self.after]

  @functools.cached_property
  def _next(self) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in self.successors]

  def string(self, rng: np.random.Generator, longest: int) -> list[int]:
    """Draws a string, as its states up to the end; again if it is longer.

    Raises:
      ValueError: if none in ten thousand is that short.
    """
    for _ in range(_MOST_TRIES):
      state = int(rng.choice(self.starts))
      states = [state]
      for draw in rng.random(longest - 1).tolist():
        if state == END:
          return states
        following = self._next[state]
        state = following[int(draw * len(following))]
        states.append(state)
      if state == END:
        return states
    raise ValueError(
      f"no string of this grammar is of at most {longest} symbols: give it "
      "longer sequences, or fewer states"
    )

  def sequence(self, rng: np.random.Generator, length: int) -> np.ndarray:
    """Draws strings one after another, and cuts the last: [length] states."""
    states: list[int] = []
    while len(states) < length:
      states += self.string(rng, length)
    return np.array(states[:length], np.int32)


@functools.lru_cache(maxsize=8)
def make(
  vocabulary_size: int,
  ambiguities: int,
  depth: int,
  density: float,
  starts: int,
  seed: int,
) -> Grammar:
  """Draws a grammar, again until it is a valid one.

  Each state is followed by a symbol with a probability of `density` if that is
  split, else of density / depth; the next state is then one of the symbol's,
  all equally likely. A grammar is valid if no string begins with the end mark
  and each state has a path to it.

  Args:
    vocabulary_size: symbols with the end mark, which is number 0.
    ambiguities: how many symbols, from 1 on, are split into states.
    depth: states of one that is split.
    density: of transitions.
    starts: how many states a string may begin with.
    seed: of the drawing.

  Raises:
    ValueError: if no grammar is valid.
  """
  rng = np.random.default_rng(seed)
  # [symbols]: states of each, and the first of them.
  states = np.where(np.arange(vocabulary_size) <= ambiguities, depth, 1)
  states[END] = 1
  first = np.cumsum(states) - states
  total = int(states.sum())
  symbols = np.repeat(np.arange(vocabulary_size, dtype=np.int32), states)
  for _ in range(_MOST_TRIES):
    shape = (total, vocabulary_size)
    follows = rng.random(shape) < density * states / depth
    successors = np.where(follows, first + rng.integers(states, size=shape), -1)
    successors[END] = -1
    chosen = rng.choice(total, starts, replace=False)
    if END not in chosen and _all_end(successors):
      return Grammar(symbols, successors.astype(np.int32), chosen)
  raise ValueError(
    f"no grammar of vocabulary_size={vocabulary_size}, "
    f"ambiguities={ambiguities}, depth={depth} and density={density} leads "
    "from each state to the end: give it more symbols or a higher density"
  )


def _all_end(successors: np.ndarray) -> bool:
  """Whether each state has a path to the end."""
  ends = np.zeros(len(successors), bool)
  ends[END] = True
  while True:
    # The last entry is for "no state".
    reaches = np.append(ends, False)[successors].any(axis=1) | ends
    if (reaches == ends).all():
      return bool(ends.all())
    ends = reaches
