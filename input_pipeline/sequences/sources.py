"""What makes examples, by name: `config.data.source`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from input_pipeline import choices
from input_pipeline.sequences.cited_facts import CitedFacts
from input_pipeline.sequences.digits import Digits
from input_pipeline.sequences.digits_grid import DigitsGrid
from input_pipeline.sequences.distances import Distances
from input_pipeline.sequences.grammar_states import GrammarStates
from input_pipeline.sequences.marked_word import MarkedWord
from input_pipeline.sequences.mqar import MultiQueryRecall
from input_pipeline.sequences.near_and_far import NearAndFar
from input_pipeline.sequences.records import Records
from input_pipeline.sequences.reversal import Reversal
from input_pipeline.stream import Example


class Source(Protocol):
  """A frozen dataclass, whose fields are the options of `config.data`.

  It checks them in `__post_init__`, before any example is made.

  Attributes:
    vocabulary_size: tokens there are.
    classes: labels there are.
    groups: names of what examples or targets are told apart by; () for nothing.
  """

  vocabulary_size: int
  classes: int
  groups: Sequence[str]

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes an example; all of a source have arrays of the same shapes.

    Args:
      rng: decides all that is random.
      split: "train" or "eval", for a source whose data are not endless; what
        `rng` gives is another anyway.

    Returns:
      tokens int32 [length], or inputs float32 [length, vocabulary_size], which
      are mixtures of tokens; targets int32 and weights float32, both [length],
      or [1] for a label of the whole sequence; and, if there are groups, group
      int32, as targets or []; and, if places that follow each other are to be
      answered together, the number of each one's element, elements int32
      [length], -1 for padding; and the image uint8 [height, width, channels]
      that a text is about, which only some models see. segments and positions
      int32 [length] are left out where a sequence fills its row; see
      `models.transformer`.
    """


# To add one, write its module and put it here.
SOURCES: dict[str, type[Source]] = {
  "cited_facts": CitedFacts,
  "digits": Digits,
  "digits_grid": DigitsGrid,
  "distances": Distances,
  "grammar": GrammarStates,
  "marked_word": MarkedWord,
  "mqar": MultiQueryRecall,
  "near_and_far": NearAndFar,
  "records": Records,
  "reversal": Reversal,
}


def create(name: str, options: Mapping[str, Any]) -> Source:
  """The source of a name with some of its fields.

  Raises:
    ValueError: if there is no such source, it has no such field, or a value
      does not fit.
  """
  return choices.create("source", SOURCES, name, options)
