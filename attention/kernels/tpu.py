"""What several kernels for TPUs share: registers, masks of bits, dtypes."""

import jax.numpy as jnp
import numpy as np

# A vector register is 8 sublanes of 128 lanes.
LANES = 128
SUBLANES = 8
# Score of a key that is not there; finite, so that differences stay numbers.
MASKED = -1e30
DTYPES = ("bfloat16", "float32")


def round_up(x: int, multiple: int) -> int:
  """The least multiple that is not less than `x`."""
  return -(-x // multiple) * multiple


def unsupported_arrays(q, k, v) -> str | None:
  """Says why dtypes or sizes do not suit a kernel, or returns None."""
  for name, x in (("q", q), ("k", k), ("v", v)):
    if x.dtype != q.dtype or x.dtype.name not in DTYPES:
      return (
        f"{name} is {x.dtype.name}; the kernel needs q, k and v of one dtype, "
        f"{' or '.join(DTYPES)}"
      )
    if 0 in x.shape:
      return (
        f"{name} has shape {x.shape}; the kernel needs at least one element"
      )
  return None


def pack_mask(mask: np.ndarray, dtype: str):
  """Returns a mask as bits, to be combined by "and" with what it masks.

  Args:
    mask: booleans [rows, lanes].
    dtype: name of the dtype of what is masked, read as int32. In bfloat16 two
      rows share one integer.

  Returns:
    int32 [rows, lanes], or half as many rows.
  """
  if dtype == "float32":
    return jnp.asarray(np.where(mask, -1, 0).astype(np.int32))
  half = np.where(mask, 0xFFFF, 0).astype(np.uint32)
  return jnp.asarray((half[::2] | half[1::2] << 16).view(np.int32))
