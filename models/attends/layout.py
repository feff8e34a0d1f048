"""What attention over a grid is told of the tokens before it is traced."""

import dataclasses
import functools
import math

# Of what makes a mask of a layout and options. Typed, since 1 and True are one
# key otherwise, and what refuses True would not see it.
cache_by_layout = functools.lru_cache(maxsize=32, typed=True)
# The collection of what goes from one step of sampling to the next.
STATE = "attention_state"


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where tokens stand: those of the grid in row-major order, then the text.

  It holds no arrays, so that what is made of it, as a mask, can be cached by
  its fields.

  Attributes:
    grid: sides of the grid in tokens, as (frames, rows, columns).
    trained_grid: those that the model was made for; `grid` differs where it is
      called with larger images or more frames.
    text: number of condition tokens. In self-attention they follow the tokens
      of the grid, among queries and keys; in cross-attention they are the keys.
  """

  grid: tuple[int, ...]
  trained_grid: tuple[int, ...]
  text: int = 0

  @property
  def places(self) -> int:
    """Number of tokens of the grid."""
    return math.prod(self.grid)

  @property
  def trained_places(self) -> int:
    """Number of tokens of the grid that the model was made for."""
    return math.prod(self.trained_grid)
