"""What callers give for the slots of dot-product attention, checked."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from attention import checks, scores, tiles
from attention.mask_base import Mask
from attention.scores import ScoreMod


def as_tuple(steps) -> tuple:
  """Returns one step of a slot or a sequence of them as a tuple."""
  return tuple(steps) if isinstance(steps, Sequence) else (steps,)


def all_mods(bias, mods, lead, shape) -> tuple[ScoreMod, ...]:
  """Returns the score modifications with the bias before them.

  Args:
    bias: what broadcasts to [*lead, heads, q_len, kv_len], or None.
    mods: a score modification or a sequence of them.
    lead: leading axes of the queries.
    shape: [batch, heads, q_len, kv_len], with batch all leading axes in one.
  """
  mods = as_tuple(mods)
  for mod in mods:
    if not isinstance(mod, ScoreMod):
      raise ValueError(
        f"score_mods has {mod!r}; it takes what attention.scores makes, such "
        "as scores.function(f) for a plain function f"
      )
  if bias is None:
    return mods
  checks.floating("bias", bias)
  full = (*lead, *shape[1:])
  padded = (1,) * (len(full) - bias.ndim) + bias.shape
  if len(padded) != len(full) or any(
    have not in (1, want) for have, want in zip(padded, full, strict=True)
  ):
    raise ValueError(
      f"bias has shape {bias.shape}; it must broadcast to "
      f"[..., heads, q_len, kv_len] = {full}"
    )
  bias = bias.reshape(padded)
  if len(lead) != 1 and max(padded[: len(lead)], default=1) > 1:
    bias = jnp.broadcast_to(bias, (*lead, *padded[-3:]))
  batch = math.prod(bias.shape[:-3])
  return (scores.bias(bias.reshape(batch, *padded[-3:])), *mods)


def split_scale(scale, mods, dim: int, shape):
  """Returns the scale as a number, one that is an array as a modification.

  Args:
    scale: a number, an array that broadcasts to [batch, heads, q_len] or None.
    mods: the score modifications, before which an array's goes.
    dim: width of a head.
    shape: [batch, heads, q_len, kv_len].
  """
  if scale is None:
    return dim**-0.5, mods
  if not hasattr(scale, "dtype"):
    checks.number("scale", scale)
    return scale, mods
  checks.floating("scale", scale)
  if scale.ndim == 0:
    return scale, mods
  padded = (1,) * (3 - scale.ndim) + scale.shape
  if len(padded) != 3 or any(
    have not in (1, want) for have, want in zip(padded, shape[:3], strict=True)
  ):
    raise ValueError(
      f"scale has shape {scale.shape}; it must broadcast to "
      f"[batch, heads, q_len] = {shape[:3]}"
    )
  return 1.0, (
    scores.Scale(tiles.squeezed(scale.reshape(padded), "bhq")),
    *mods,
  )


def check_operands(mods, mask, shape) -> None:
  """Raises ValueError unless modifications and mask fit scores of `shape`."""
  for mod in mods:
    for operand in mod.operands():
      operand.check(f"an array of score_mods, {type(mod).__name__},", *shape)
    new = tiles.on_one_score(mod.modify, mod.operands())
    if not jnp.issubdtype(new.dtype, jnp.floating):
      raise ValueError(
        f"one of score_mods, {type(mod).__name__}, makes {new.dtype} of a "
        f"score; it must be {checks.FLOATING}"
      )
  if mask is not None:
    checks.instance(
      "mask", mask, Mask, "attention.masks, such as dense(array),"
    )
    mask.check(*shape)
