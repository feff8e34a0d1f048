"""A canvas in overlapping tiles: cut, and merged to the mean of what they say.

As in MultiDiffusion (arXiv 2302.08113). The last tile of an axis is moved back
so that it ends at the border.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from attention import checks


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Where tiles lie.

  Attributes:
    shape: sides of the canvas.
    window: sides of a tile.
    overlap: by how much neighbours overlap at least, one number a side.

  Raises:
    ValueError: for a window that is larger than the canvas, or an overlap that
      leaves no step from one tile to the next.
  """

  shape: tuple[int, ...]
  window: tuple[int, ...]
  overlap: tuple[int, ...]

  def __post_init__(self):
    for name in ("shape", "window", "overlap"):
      checks.wholes(name, getattr(self, name))
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if not len(self.shape) == len(self.window) == len(self.overlap):
      raise ValueError(
        f"window={self.window} and overlap={self.overlap} need a number for "
        f"each side of {self.shape}."
      )
    for side, window, overlap in zip(
      self.shape, self.window, self.overlap, strict=True
    ):
      if not 1 <= window <= side:
        raise ValueError(
          f"window={self.window} must be from 1 to the sides {self.shape}."
        )
      if not 0 <= overlap < window:
        raise ValueError(
          f"overlap={self.overlap} must be from 0 to less than {self.window}."
        )

  @functools.cached_property
  def starts(self) -> tuple[tuple[int, ...], ...]:
    """The first place of each tile, in row-major order."""
    axes = [
      (*range(0, side - window, window - overlap), side - window)
      for side, window, overlap in zip(
        self.shape, self.window, self.overlap, strict=True
      )
    ]
    return tuple(itertools.product(*axes))

  @functools.cached_property
  def counts(self) -> np.ndarray:
    """How many tiles cover each place, int [*shape]."""
    counts = np.zeros(self.shape, np.int32)
    for place in self._places():
      counts[place] += 1
    return counts

  def in_patches(self, patch: tuple[int, ...]) -> "Tiles":
    """The same tiles on the grid of patches.

    Raises:
      ValueError: for tiles that begin or end within a patch.
    """
    for name in ("shape", "window", "overlap"):
      sides = getattr(self, name)
      if any(n % p for n, p in zip(sides, patch, strict=True)):
        raise ValueError(
          f"{name}={sides} must be multiples of the patches {patch}."
        )
    divided = (
      tuple(n // p for n, p in zip(sides, patch, strict=True))
      for sides in (self.shape, self.window, self.overlap)
    )
    return Tiles(*divided)

  def cut(self, x: jax.Array) -> jax.Array:
    """Maps [batch, *shape, ...] to [tiles, batch, *window, ...]."""
    return jnp.stack([x[(slice(None), *place)] for place in self._places()])

  def merge(self, tiles: jax.Array) -> jax.Array:
    """Maps [tiles, batch, *window, ...] to [batch, *shape, ...].

    Each place has the mean of the tiles that cover it: what one of them says,
    and the mean of the differences from it. So the result is exactly what they
    say where they agree.
    """
    batch, rest = tiles.shape[1], tiles.shape[2 + len(self.shape) :]
    one = jnp.zeros((batch, *self.shape, *rest), tiles.dtype)
    for place, tile in zip(self._places(), tiles, strict=True):
      one = one.at[(slice(None), *place)].set(tile)
    apart = jnp.zeros_like(one)
    for place, tile in zip(self._places(), tiles, strict=True):
      here = (slice(None), *place)
      apart = apart.at[here].add(tile - one[here])
    counts = self.counts.reshape(1, *self.shape, *(1,) * len(rest))
    return one + apart / counts.astype(tiles.dtype)

  def _places(self) -> Iterator[tuple[slice, ...]]:
    for start in self.starts:
      yield tuple(
        slice(at, at + window)
        for at, window in zip(start, self.window, strict=True)
      )
