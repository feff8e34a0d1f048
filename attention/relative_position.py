"""Relative position bias: one learned number for each offset of two tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks


def relative_position_bias(
  table: Float[Array, "heads offsets offsets"],
) -> Float[Array, "heads tokens tokens"]:
  """Expands a table of relative offsets into the bias of a square window.

  With the query at (i, j) and the key at (m, n) of a P x P window,

    bias[h, i * P + j, m * P + n] = table[h, m - i + P - 1, n - j + P - 1]

  so the offset is key minus query (Swin, arXiv 2103.14030, counts the other
  way). MaxViT (arXiv 2204.01697), equation 1 and its code.

  Args:
    table: [heads, 2 * P - 1, 2 * P - 1].

  Returns:
    [heads, P * P, P * P].

  Raises:
    ValueError: if the table is not square with an odd side.
  """
  heads, offsets = _check_table(table)
  window = (offsets + 1) // 2
  bias = _toeplitz(table)  # [heads, offset, j, n]
  bias = _toeplitz(jnp.moveaxis(bias, 1, -1))  # [heads, j, n, i, m]
  bias = bias.transpose(0, 3, 1, 4, 2)  # [heads, i, j, m, n]
  return bias.reshape(heads, window**2, window**2)


def resize_relative_table(
  table: Float[Array, "heads offsets offsets"], window_size: int
) -> Float[Array, "heads new_offsets new_offsets"]:
  """Interpolates a table of offsets for windows of another size.

  Bilinear with half-pixel centres and no antialiasing, the way the official
  MaxViT code takes a model trained at 224 pixels to 384.

  Args:
    table: [heads, 2 * P - 1, 2 * P - 1].
    window_size: side Q of the new windows.

  Returns:
    [heads, 2 * Q - 1, 2 * Q - 1] in the dtype of `table`.

  Raises:
    ValueError: if the table is not square with an odd side, or Q < 1.
  """
  heads, offsets = _check_table(table)
  checks.whole("window_size", window_size, 1)
  side = 2 * window_size - 1
  if side == offsets:
    return table
  return jax.image.resize(
    table, (heads, side, side), method="bilinear", antialias=False
  )


def _check_table(table: Array) -> tuple[int, int]:
  checks.floating("table", table)
  if (
    table.ndim != 3
    or table.shape[1] != table.shape[2]
    or table.shape[1] % 2 == 0
  ):
    raise ValueError(
      f"table has shape {table.shape}; it must be [heads, 2 * P - 1, 2 * P - 1]"
      " for a window of P x P tokens"
    )
  return table.shape[:2]


def _toeplitz(x: Array) -> Array:
  """Returns out[..., query, key] = x[..., key - query + P - 1].

  Rows of length 2 * P read back in rows of length 2 * P - 1 shift by one each
  time. That is a broadcast, two reshapes and two slices, whose gradient is a
  sum over rows: no gather forwards and no scatter backwards.
  """
  *lead, offsets = x.shape
  window = (offsets + 1) // 2
  x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, 1)])
  x = jnp.broadcast_to(x[..., None, :], (*lead, window, offsets + 1))
  x = x.reshape(*lead, window * (offsets + 1))[..., : window * offsets]
  return x.reshape(*lead, window, offsets)[..., window - 1 :]
