"""Radial Attention: the farther two frames, the fewer places see each other."""

import math

import flax.linen as nn
import jax

from attention import checks, masks
from attention.mask_base import Mask
from models.attends import scaling
from models.attends.layout import Layout, cache_by_layout
from models.attends.masked import masked


def radial(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  decay: float = 1.0,
  sink: bool = True,
  block_size: int = 128,
  dense_width: int = 128,
  scale_by: str = "constant",
) -> jax.Array:
  """Attends by Radial Attention's blocks (arXiv 2506.19852).

  The mask is `masks.radial_blocks`, the released code's rule. Condition tokens
  that take part see and are seen by all, which the code has for HunyuanVideo.

  Args:
    module: see `models.attends`, and so for the arrays.
    q: queries.
    k: keys.
    v: values.
    layout: a grid of (frames, rows, columns).
    decay: factor of the width of the bands.
    sink: whether all see the first frame, which the code has for Wan but not
      for HunyuanVideo.
    block_size: side of a block; at most the tokens of a frame.
    dense_width: see `masks.radial_blocks`; small models need less than 128.
    scale_by: "constant" or "entropy", see `models.attends.scaling`.

  Raises:
    ValueError: if the grid has no frames, a block is more than a frame, or
      for another `scale_by`.
  """
  mask = radial_mask(layout, decay, sink, block_size, dense_width)
  scale = scaling.of_mask(scale_by, mask, layout, q, k)
  return masked(module, q, k, v, mask, scale=scale)


@cache_by_layout
def radial_mask(
  layout: Layout, decay: float, sink: bool, block_size: int, dense_width: int
) -> Mask:
  """Returns the mask of `radial`, whose arguments these are."""
  if len(layout.grid) != 3:
    raise ValueError(
      f"attend is 'radial', and the grid of tokens is {layout.grid}; it must "
      "be (frames, rows, columns)"
    )
  frames, *sides = layout.grid
  tokens = math.prod(sides)
  checks.whole("block_size", block_size, 1)
  if block_size > tokens:
    raise ValueError(
      f"block_size is {block_size}; a frame has {tokens} tokens, so it must be "
      f"from 1 to {tokens}"
    )
  return masks.radial_blocks(
    frames,
    tokens,
    decay=decay,
    sink=sink,
    text_tokens=layout.text,
    block_size=block_size,
    dense_width=dense_width,
  )
