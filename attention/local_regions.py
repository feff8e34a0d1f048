"""Local region cross-attention: each query of a grid sees one cell of a finer.

What a compressed vision token of Vision Remember (arXiv 2506.03928) and of
TokenPacker (2407.02392) looks at: query (a, b) of a grid attends to the r x r
keys (r a + i, r b + j) of a grid that is r times as fine, and to no others.
With 4 to 16 keys a query, scores are sums of products and no matrix products,
and grids are reshaped but never transposed, so that XLA writes a call as a few
loops over memory.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attention import checks

# Of [batch, rows, in a cell, columns, in a cell, heads], those in a cell.
_CELL = (2, 4)


def local_region_attention(
  q: Float[Array, "batch rows columns heads dim"],
  k: Float[Array, "batch key_rows key_columns heads dim"],
  v: Float[Array, "batch key_rows key_columns heads value_dim"],
  *,
  scale: float | None = None,
  seen: Bool[Array, "batch key_rows key_columns"] | None = None,
) -> Float[Array, "batch rows columns heads value_dim"]:
  """Attends from each query to the keys of its own cell.

  The sides of a cell are key_rows / rows and key_columns / columns.

  Args:
    q: queries on a grid.
    k: keys on a grid whose sides are multiples of the queries'.
    v: values of the keys.
    scale: factor of the scores; dim ** -0.5 if None.
    seen: False at keys that nobody sees, as beyond the edge of a picture; what
      they hold reaches nothing. A query of which no key is seen gets zeros.

  Returns:
    An array of the dtype of `q`; scores, softmax and sums are float32.

  Raises:
    ValueError: for shapes or dtypes that do not fit.
  """
  checks.same_floats(q=q, k=k, v=v)
  weights = local_region_weights(q, k, scale=scale, seen=seen)
  if seen is not None:
    v = jnp.where(seen[..., None, None], v, 0)
  rows, columns = q.shape[1:3]
  return apply_local_region_weights(weights, v, rows=rows, columns=columns)


def local_region_weights(
  q: Float[Array, "batch rows columns heads dim"],
  k: Float[Array, "batch key_rows key_columns heads dim"],
  *,
  scale: float | None = None,
  seen: Bool[Array, "batch key_rows key_columns"] | None = None,
) -> Float[Array, "batch key_rows key_columns heads"]:
  """The weight that each key has for the one query that sees it.

  Arguments and errors are those of `local_region_attention`.

  Returns:
    Float32; the weights of a cell sum to one, or are zero where no key of it is
    seen.
  """
  checks.same_floats(q=q, k=k)
  _check_grids(q, k)
  if seen is not None:
    checks.booleans("seen", seen)
    if seen.shape != k.shape[:3]:
      raise ValueError(
        f"seen has shape {seen.shape}; it must be [batch, key_rows, "
        f"key_columns] = {k.shape[:3]}"
      )
    k = jnp.where(seen[..., None, None], k, 0)
  if scale is None:
    scale = q.shape[-1] ** -0.5
  rows, columns = q.shape[1:3]
  # [B, a, 1, b, 1, H, D] beside [B, a, r, b, r, H, D].
  queries = q[:, :, None, :, None].astype(jnp.float32)
  keys = _split(k, rows, columns).astype(jnp.float32)
  scores = (queries * keys).sum(-1) * scale
  if seen is None:
    weights = jax.nn.softmax(scores, _CELL)
  else:
    there = _split(seen, rows, columns)[..., None]
    # A finite number, so that a cell without keys has finite gradients.
    low = jnp.finfo(jnp.float32).min
    weights = jax.nn.softmax(jnp.where(there, scores, low), _CELL)
    weights = jnp.where(there, weights, 0.0)
  return weights.reshape(k.shape[:-1])


def apply_local_region_weights(
  weights: Float[Array, "batch key_rows key_columns heads"],
  v: Float[Array, "batch key_rows key_columns heads value_dim"],
  *,
  rows: int,
  columns: int,
) -> Float[Array, "batch rows columns heads value_dim"]:
  """Sums the values of each cell by the weights of its keys.

  Args:
    weights: as `local_region_weights` returns them.
    v: values of the keys.
    rows: of the queries; key_rows is a multiple.
    columns: of the queries; key_columns is a multiple.

  Returns:
    An array of the dtype of `v`; sums are float32.

  Raises:
    ValueError: if the shapes do not fit each other.
  """
  checks.floating("weights", weights)
  checks.floating("v", v)
  if v.ndim != 5 or weights.shape != v.shape[:-1]:
    raise ValueError(
      f"weights has shape {weights.shape} and v {v.shape}; they must be "
      "[batch, key_rows, key_columns, heads] and the same with value_dim"
    )
  _check_cells("v", v, rows, columns)
  weights = _split(weights, rows, columns)[..., None].astype(jnp.float32)
  values = _split(v, rows, columns).astype(jnp.float32)
  return (weights * values).sum(_CELL).astype(v.dtype)


def _split(x: Array, rows: int, columns: int) -> Array:
  """Cuts [B, r a, r b, ...] into [B, a, r, b, r, ...], in place."""
  batch, height, width, *rest = x.shape
  cell = (height // rows, width // columns)
  return x.reshape(batch, rows, cell[0], columns, cell[1], *rest)


def _check_grids(q: Array, k: Array) -> None:
  for name, x in (("q", q), ("k", k)):
    if x.ndim != 5:
      raise ValueError(
        f"{name} has shape {x.shape}; it must be [batch, rows, columns, heads, "
        "dim]"
      )
  if (q.shape[0], *q.shape[3:]) != (k.shape[0], *k.shape[3:]):
    raise ValueError(
      f"q has shape {q.shape} and k {k.shape}; batch, heads and dim must agree"
    )
  _check_cells("k", k, *q.shape[1:3])


def _check_cells(name: str, x: Array, rows: int, columns: int) -> None:
  height, width = x.shape[1:3]
  if (
    min(rows, columns) < 1
    or min(height, width) < 1
    or height % rows
    or width % columns
  ):
    raise ValueError(
      f"{name} has a grid of {height} x {width}, whose sides must be multiples "
      f"of those of the queries, {rows} x {columns}"
    )
