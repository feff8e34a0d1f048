"""FreeSwim's self-attention: a window of the trained size, all frames."""

import math

import flax.linen as nn
import jax

from attention import checks, masks, scales
from attention.mask_base import Mask
from models.attends import scaling
from models.attends.layout import Layout, cache_by_layout
from models.attends.masked import masked

# FreeSwim's own: of twice as many keys as in training, whatever the size is.
TWICE = "twice"


def inward_window(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  windowed: bool = True,
  inward: bool = True,
  scale_by: str = TWICE,
) -> jax.Array:
  """Attends within windows of image rows and columns (arXiv 2511.14712).

  A window has radius n // 2 for n rows, or columns, of the trained grid, so one
  row more than that where n is even; the last two axes of the grid are rows and
  columns, and all of the axes before them is visible.

  Args:
    module: see `models.attends`, and so for the arrays.
    q: queries.
    k: keys.
    v: values.
    layout: a grid of (rows, columns) or (frames, rows, columns).
    windowed: whether there is a window; without it this is the branch with full
      attention.
    inward: whether windows are pushed inward at the borders, else cut there.
    scale_by: "twice", FreeSwim's factor sqrt(log_T(2 T)) of T places of a
      trained frame, whatever the size is now; or "constant" or "entropy", see
      `models.attends.scaling`.

  Raises:
    ValueError: for another `scale_by`, a grid without rows and columns, or with
      text among its tokens, which FreeSwim does not define.
  """
  checks.flag("windowed", windowed)
  scaling.check(scale_by, (TWICE, *scaling.SCALES))
  mask = window_mask(layout, inward)
  mask = mask if windowed else None
  if scale_by == TWICE:
    trained = math.prod(layout.trained_grid[-2:])
    scale = scales.entropy(2 * trained, trained, q.shape[-1])
  else:
    scale = scaling.of_mask(scale_by, mask, layout, q, k)
  return masked(module, q, k, v, mask, scale=scale)


@cache_by_layout
def window_mask(layout: Layout, inward: bool) -> Mask:
  """Returns the mask of `inward_window`."""
  if len(layout.grid) < 2 or layout.text:
    raise ValueError(
      f"attend is 'inward_window', and the grid of tokens is {layout.grid} "
      f"with {layout.text} of text; it must be (rows, columns) or (frames, "
      "rows, columns) without text"
    )
  radius = (side // 2 for side in layout.trained_grid[-2:])
  before = (None,) * (len(layout.grid) - 2)
  return masks.inward_window(layout.grid, (*before, *radius), inward=inward)
