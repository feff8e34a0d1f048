"""Sparse attention without a thought, to measure others against."""

import flax.linen as nn
import jax
import numpy as np

from attention import checks, masks
from attention.mask_base import Mask
from models import registry
from models.attends import scaling
from models.attends.layout import Layout, cache_by_layout
from models.attends.masked import masked

KINDS = ("random", "band")


def naive(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  kind: str = "random",
  density: float = 0.5,
  block_size: int = 1,
  seed: int = 0,
  scale_by: str = "constant",
) -> jax.Array:
  """Attends by a mask of a density that knows nothing of the grid.

  Condition tokens that take part see and are seen by all, beyond the density.

  Args:
    module: see `models.attends`, and so for the arrays.
    q: queries.
    k: keys.
    v: values.
    layout: where they stand.
    kind: "random", each block of queries sees itself and others drawn at
      random, all equally many; or "band", a block sees those nearest in the
      row of all tokens, equally many also at its ends.
    density: share of the blocks that each row of blocks sees, rounded.
    block_size: side of a block.
    seed: of what is drawn.
    scale_by: "constant" or "entropy", see `models.attends.scaling`.

  Raises:
    ValueError: for another kind or `scale_by`, or a density that leaves rows
      empty.
  """
  mask = naive_mask(layout, kind, density, block_size, seed)
  scale = scaling.of_mask(scale_by, mask, layout, q, k)
  return masked(module, q, k, v, mask, scale=scale)


@cache_by_layout
def naive_mask(
  layout: Layout, kind: str, density: float, block_size: int, seed: int
) -> Mask:
  """Returns the mask of `naive`, whose arguments these are."""
  if kind not in KINDS:
    raise registry.unknown("kind of naive attention", kind, KINDS)
  checks.number("density", density)
  checks.whole("block_size", block_size, 1)
  checks.whole("seed", seed, 0)
  blocks = -(-layout.places // block_size)
  seen = round(density * blocks)
  if not 1 <= seen <= blocks:
    raise ValueError(
      f"density is {density}; a row has {blocks} blocks of {block_size} "
      f"tokens, so it must be from {1 / blocks:.3g} to 1, or a row is empty"
    )
  place = np.arange(blocks)
  if kind == "band":
    first = np.clip(place - seen // 2, 0, blocks - seen)[:, None]
    table = (place >= first) & (place < first + seen)
  else:
    order = np.random.default_rng(seed).random((blocks, blocks))
    order[place, place] = -1
    table = order.argsort(axis=1).argsort(axis=1) < seen
  # Whole blocks of text begin behind those that the grid fills.
  text = -(-(layout.places + layout.text) // block_size) - blocks
  table = np.pad(table, (0, text), constant_values=True)
  if layout.text:
    mixed = layout.places // block_size
    table[mixed:], table[:, mixed:] = True, True
  return masks.blocks(table, block_size)
