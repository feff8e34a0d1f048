"""The best that can be said of a grammar's states by who knows the grammar.

A string may begin with several states of one symbol, so not even a perfect
predictor is right everywhere: what it reaches bounds what a model can.
"""

import numpy as np

from input_pipeline.sequences.grammar import END, Grammar
from input_pipeline.sequences.grammar_states import GrammarStates
from input_pipeline.stream import Example


def predict(source: GrammarStates, example: Example) -> np.ndarray:
  """Returns the likeliest state of each element, by what was shown so far.

  That of the sum of its probabilities over the element's steps, as models are
  measured. Probabilities are exact for blanks; for wrong symbols their mean
  share of the steps stands for the law of gaps.

  Args:
    source: what made the example.
    example: of which `inputs` and `elements` are read.

  Returns:
    int [elements that are there].

  Raises:
    ValueError: if noise hides the symbols.
  """
  if source.noise >= 1:
    raise ValueError(
      f"noise is {source.noise}, but symbols can be told from it only below 1."
    )
  element = example["elements"]
  inputs = example["inputs"][element >= 0]
  shown = np.where(inputs.max(axis=1) >= 1, inputs.argmax(axis=1), -1)
  sums = np.zeros((element.max() + 1, source.classes))
  belief = np.zeros(source.classes)
  belief[END] = 1.0
  gap = _share_of_gaps(source) if source.wrong_symbols else 0.0
  for step, symbol in enumerate(shown):
    if symbol >= 0:
      belief = _moved(source.grammar, belief, symbol, gap)
    sums[element[step]] += belief
  return sums.argmax(axis=1)


def accuracy(source: GrammarStates, examples: list[Example]) -> float:
  """Returns the share of elements that `predict` has right."""
  right = []
  for example in examples:
    element = example["elements"]
    first = np.flatnonzero(np.diff(element, prepend=-1) == 1)
    right.append(predict(source, example) == example["targets"][first])
  return float(np.concatenate(right).mean())


def _moved(
  grammar: Grammar, belief: np.ndarray, symbol: int, gap: float
) -> np.ndarray:
  """Returns the probabilities of states after a symbol was shown.

  Args:
    grammar: the grammar.
    belief: probabilities before [states].
    symbol: what was shown.
    gap: probability of a step to be of a gap, whose symbols cannot follow.
  """
  moved = np.zeros_like(belief)
  for state in np.flatnonzero(belief):
    following = grammar.after[state, symbol]
    if following < 0:
      wrong = grammar.wrong[state]
      if symbol in wrong:
        moved[state] += belief[state] * gap / len(wrong)
    elif state == END:
      # Several states to begin with may have this symbol.
      starts = grammar.starts[grammar.symbols[grammar.starts] == symbol]
      moved[starts] += belief[state] * (1 - gap) / len(grammar.starts)
    else:
      ways = (grammar.successors[state] >= 0).sum()
      moved[following] += belief[state] * (1 - gap) / ways
  return moved / moved.sum()


def _share_of_gaps(source: GrammarStates) -> float:
  steps = source.gap_probability * sum(source.gaps) / 2
  return steps / (1 + steps)
