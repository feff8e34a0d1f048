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
  _, offsets = _check_table(table)
  return _expanded(table, (offsets + 1) // 2)


def relative_halo_bias(
  table: Float[Array, "heads offsets offsets"], block_size: int
) -> Float[Array, "heads queries keys"]:
  """Expands a table of offsets into the bias of blocks with a halo.

  With the query at (i, j) of a block of b x b and the key at (m, n) of the
  w x w window around it, both counted from their own first corner,

    bias[head, i * b + j, m * w + n] = table[head, m - i + b - 1, n - j + b - 1]

  That of overlapping cross-attention (HAT, arXiv 2205.04437), whose code stores
  the same numbers in another order.

  Args:
    table: [heads, b + w - 1, b + w - 1].
    block_size: side b of a block.

  Returns:
    [heads, b * b, w * w], as `halo.halo_attention` takes it.

  Raises:
    ValueError: if the table is not square, or too small for such blocks.
  """
  checks.floating("table", table)
  checks.whole("block_size", block_size, 1)
  if (
    table.ndim != 3
    or table.shape[1] != table.shape[2]
    or table.shape[1] < 2 * block_size - 1
  ):
    raise ValueError(
      f"table has shape {table.shape}; it must be [heads, b + w - 1, b + w - "
      f"1] for blocks of block_size b={block_size} in windows of w, at least b"
    )
  return _expanded(table, block_size)


def _expanded(table: Array, block_size: int) -> Array:
  """Returns table[head, m - i + b - 1, n - j + b - 1] as [heads, i j, m n]."""
  heads, offsets, _ = table.shape
  window = offsets + 1 - block_size
  bias = _toeplitz(table, block_size)  # [heads, offset, j, n]
  # [heads, j, n, i, m]
  bias = _toeplitz(jnp.moveaxis(bias, 1, -1), block_size)
  bias = bias.transpose(0, 3, 1, 4, 2)  # [heads, i, j, m, n]
  return bias.reshape(heads, block_size**2, window**2)


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


def _toeplitz(x: Array, queries: int) -> Array:
  """Returns out[..., query, key] = x[..., key - query + queries - 1].

  Rows that are one longer than `x`, read back in rows as long as it, shift by
  one each time. That is a broadcast, two reshapes and two slices, whose
  gradient is a sum over rows: no gather forwards and no scatter backwards.
  """
  *lead, offsets = x.shape
  x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, 1)])
  x = jnp.broadcast_to(x[..., None, :], (*lead, queries, offsets + 1))
  x = x.reshape(*lead, queries * (offsets + 1))[..., : queries * offsets]
  return x.reshape(*lead, queries, offsets)[..., queries - 1 :]
