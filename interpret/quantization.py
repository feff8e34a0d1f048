"""How much a model loses with four bits: dense layers with rounded numbers.

with quantization.w4a4("int4"):
  logits = model.apply(variables, tokens)

Weights and inputs of dense layers are rounded to what four bits hold, and
computed with as ever ("fake quantisation"): what is measured is the loss by
rounding, and nothing gets faster. Outliers cost it, since the numbers beside a
large one share its scale; so it is the test of "A Unified View of Attention and
Residual Sinks" (arXiv 2601.22966, table 2).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import feed_forward_branch, registry

BLOCK = 16
# The largest numbers of E2M1 and of E4M3, and of four bits with a sign.
_E2M1, _E4M3, _INT4 = 6.0, 448.0, 7.0


def int4(x: jax.Array, axes: Sequence[int]) -> jax.Array:
  """Rounds to -7, ..., 7 times the largest |x| along `axes` by 7.

  Args:
    x: any array.
    axes: those that are summed over: what lies along them has one scale.

  Returns:
    An array like `x`.
  """
  wide = x.astype(jnp.float32)
  scale = jnp.abs(wide).max(tuple(axes), keepdims=True) / _INT4
  rounded = jnp.round(wide / jnp.where(scale > 0, scale, 1.0))
  return (rounded * scale).astype(x.dtype)


def nvfp4(x: jax.Array, axes: Sequence[int]) -> jax.Array:
  """Rounds to E2M1 with two scales, one for 16 numbers and one for all.

  As NVFP4: the scale of a block of 16 neighbours along `axes` is of E4M3, and
  is itself by one float32 for what else lies along `axes`: for each token, as
  the paper has it, and here for each output channel of weights too, where
  NVFP4 has one a tensor.

  Args:
    x: any array.
    axes: those that are summed over.

  Returns:
    An array like `x`.
  """
  axes = [axis % x.ndim for axis in axes]
  kept = [axis for axis in range(x.ndim) if axis not in axes]
  order = (*kept, *axes)
  moved = x.astype(jnp.float32).transpose(order)
  length = math.prod(moved.shape[len(kept) :])
  rows = moved.reshape(-1, length)
  rows = jnp.pad(rows, ((0, 0), (0, -length % BLOCK)))
  blocks = rows.reshape(len(rows), -1, BLOCK)
  whole = jnp.abs(blocks).max((1, 2), keepdims=True) / (_E2M1 * _E4M3)
  whole = jnp.where(whole > 0, whole, 1.0)
  scale = jnp.abs(blocks).max(2, keepdims=True) / _E2M1 / whole
  scale = scale.astype(jnp.float8_e4m3fn).astype(jnp.float32) * whole
  values = _e2m1(blocks / jnp.where(scale > 0, scale, 1.0)) * scale
  values = values.reshape(len(rows), -1)[:, :length].reshape(moved.shape)
  back = sorted(range(x.ndim), key=lambda axis: order[axis])
  return values.transpose(back).astype(x.dtype)


SCHEMES: dict[str, Callable[[jax.Array, Sequence[int]], jax.Array]] = {
  "int4": int4,
  "nvfp4": nvfp4,
}


def w4a4(scheme: str = "int4") -> contextlib.AbstractContextManager[None]:
  """A context in which dense layers compute with weights and inputs of 4 bits.

  All `nn.Dense` and `nn.DenseGeneral` of what is applied in it; a function that
  is jitted has to be traced in it. A scale is for an output channel of weights
  and a token of inputs. Embeddings, logits and what lies between queries and
  values stay as they are. There is no gradient through what is rounded.

  Args:
    scheme: a key of SCHEMES.

  Raises:
    ValueError: if there is no such scheme.
  """
  if scheme not in SCHEMES:
    raise registry.unknown("scheme of quantisation", scheme, SCHEMES)
  rounded = SCHEMES[scheme]
  within = []

  def compute(call, args, kwargs, context):
    module = context.module
    dense = isinstance(module, nn.Dense | nn.DenseGeneral)
    if not dense or context.method_name != "__call__" or within:
      return call(*args, **kwargs)
    axes = module.axis if isinstance(module, nn.DenseGeneral) else -1
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    params = module.variables["params"]
    kernel = rounded(params["kernel"], range(len(axes)))
    params = {**params, "kernel": kernel}
    # A layer like it, of its own, with other parameters.
    within.append(module)
    try:
      return module.clone(parent=None).apply(
        {"params": params}, rounded(args[0], axes)
      )
    finally:
      within.pop()

  return _intercepted(compute)


@contextlib.contextmanager
def _intercepted(compute: Callable) -> Iterator[None]:
  with nn.intercept_methods(compute), feed_forward_branch.one_by_one():
    yield


def _e2m1(x: jax.Array) -> jax.Array:
  """Rounds to 0, 0.5, 1, 1.5, 2, 3, 4 and 6, ties to even, with the sign."""
  size = jnp.abs(x)
  step = jnp.where(size < 2, 0.5, jnp.where(size < 4, 1.0, 2.0))
  return jnp.clip(jnp.round(x / step) * step, -_E2M1, _E2M1)
