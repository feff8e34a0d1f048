"""The scale of scores by how many keys a query sees, of every attend.

"Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image
Synthesis" (arXiv 2306.08645): sqrt(log_T(N)) dim^(-1/2) for the N keys that a
query sees where training had T; see `attention.scales.entropy`. An attend with
scores has the option `scale_by`, one of SCALES, and asks here.
"""

from collections.abc import Sequence

import jax

from attention import scales
from attention.mask_base import Mask
from models import registry
from models.attends.layout import Layout

SCALES = ("constant", "entropy")


def check(scale_by: str, known: Sequence[str] = SCALES) -> None:
  """Raises a ValueError for an option that is none of those known."""
  if scale_by not in known:
    raise registry.unknown("scale_by", scale_by, known)


def of_count(
  scale_by: str, visible: int | jax.Array, layout: Layout, dim: int
) -> float | jax.Array | None:
  """Returns the `scale` of scores; None is dim^(-1/2).

  Args:
    scale_by: "constant", or "entropy" by `visible` and all tokens of training:
      its grid, and the text that there is now. Of the same size that is
      dim^(-1/2) to the bit if all keys are seen, and less if some are hidden.
    visible: how many keys each query sees, or integers that broadcast to
      [batch, heads, queries].
    layout: where the tokens stand.
    dim: width of a head.

  Raises:
    ValueError: for another `scale_by`.
  """
  check(scale_by)
  if scale_by == "constant":
    return None
  # Of one key the weight is 1 at any scale, as ln 1 is none: it counts as two.
  trained = max(layout.trained_places + layout.text, 2)
  visible = max(visible, 2) if isinstance(visible, int) else visible
  return scales.entropy(visible, trained, dim)


def of_mask(
  scale_by: str, mask: Mask | None, layout: Layout, q: jax.Array, k: jax.Array
) -> float | jax.Array | None:
  """Returns the `scale` where a mask says what queries see.

  Args:
    scale_by: see `of_count`.
    mask: which keys a query sees, known before the program runs; all if None.
    layout: where the tokens stand.
    q: queries [batch, queries, heads, dim].
    k: keys.

  Raises:
    ValueError: for another `scale_by`.
  """
  check(scale_by)
  if mask is None or scale_by == "constant":
    return of_count(scale_by, k.shape[1], layout, q.shape[-1])
  # What is counted is no part of the program.
  with jax.ensure_compile_time_eval():
    visible = mask.count(q.shape[1], k.shape[1])
    return of_count(scale_by, visible, layout, q.shape[-1])
