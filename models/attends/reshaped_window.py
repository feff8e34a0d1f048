"""A window that full attention of an earlier step corrects: Re-ttention."""

import flax.linen as nn
import jax

import attention
from attention import checks, masks, reshaped
from models import registry
from models.attends import scaling
from models.attends.layout import STATE, Layout

STEPS = ("store", "sparse", "window")
# Names of the state: see `reshaped.Statistics`.
_RATIO, _RESIDUAL = "ratio", "residual"


def reshaped_window(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  step: str = "store",
  keep: float = 0.03125,
  ramp: float = 0.04,
  most: float | None = None,
  scale_by: str = "constant",
) -> jax.Array:
  """Re-ttention (arXiv 2505.22918), whose steps `methods.re_ttention` orders.

  The window is `masks.share_window` of images, and `masks.frame_window` where
  the grid has frames or there is text. What is stored is of each row of the
  batch, so that both halves of guidance have their own, and of this layer. The
  residual is stored before the projection behind attention, and the released
  code has it after: that is linear, so the sum is the same.

  Args:
    module: see `models.attends`, and so for the arrays.
    q: queries.
    k: keys.
    v: values.
    layout: where they stand.
    step: "store": full attention, whose statistics are kept; "sparse": the
      window, corrected by them; "window": the window alone, for comparison.
    keep: share of the keys, of all or of each frame.
    ramp: what the ratio grows by after each sparse step.
    most: where the ratio ends; None to let it exceed 1, as the released code.
    scale_by: "constant" or "entropy", see `models.attends.scaling`: by all keys
      where the window is corrected to what full attention is, and by those of
      the window where it stands alone.

  Raises:
    ValueError: for another `step` or `scale_by`, where queries and keys are not
      the tokens of the layout, and for a sparse step with nothing stored.
  """
  if step not in STEPS:
    raise registry.unknown("step of attend='reshaped_window'", step, STEPS)
  checks.number("ramp", ramp)
  if most is not None:
    checks.number("most", most)
  tokens = layout.places + layout.text
  if (q.shape[1], k.shape[1]) != (tokens, tokens):
    raise ValueError(
      f"attend is 'reshaped_window', and there are {q.shape[1]} queries and "
      f"{k.shape[1]} keys; it is for self-attention, of {tokens} tokens here"
    )
  mask = window(layout, keep)
  alone = mask if step == "window" else None
  options = {
    "scale": scaling.of_mask(scale_by, alone, layout, q, k),
    "implementation": module.implementation,
  }
  if step == "window":
    return attention.dot_product_attention(q, k, v, mask=mask, **options)
  if step == "store":
    out, statistics = reshaped.attention_with_statistics(
      q, k, v, mask, **options
    )
    _store(module, statistics)
    return out
  if not module.has_variable(STATE, _RATIO):
    raise ValueError(
      "step is 'sparse', and no step before has stored what it needs: pass on "
      "the state of one whose step is 'store'"
    )
  statistics = reshaped.Statistics(
    *(module.get_variable(STATE, name) for name in (_RATIO, _RESIDUAL))
  )
  out = reshaped.reshaped_attention(q, k, v, mask, statistics, **options)
  _store(module, reshaped.ramped(statistics, ramp, most))
  return out


def window(layout: Layout, keep: float) -> masks.Mask:
  """Returns the mask of the tokens of a layout."""
  *frames, height, width = (1, 1, *layout.grid)[-3:]
  if len(layout.grid) < 3 and not layout.text:
    return masks.share_window(layout.places, keep)
  return masks.frame_window(frames[0], height * width, keep, text=layout.text)


def _store(module: nn.Module, statistics: reshaped.Statistics) -> None:
  if not module.is_mutable_collection(STATE):
    return
  for name, value in zip((_RATIO, _RESIDUAL), statistics, strict=True):
    module.put_variable(STATE, name, value)
