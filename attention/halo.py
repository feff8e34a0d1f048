"""Halo attention of HaloNet: blocks of queries that see their neighbourhood.

"Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (arXiv
2103.12731), section 2.2. A function of the whole image, so that a kernel may
read the overlapping neighbourhoods without writing them out.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from attention import checks
from attention.kernels import dispatch, halo, halo_gpu


def halo_attention(
  q: Float[Array, "batch query_height query_width heads dim"],
  k: Float[Array, "batch height width heads dim"],
  v: Float[Array, "batch height width heads v_dim"],
  *,
  block_size: int,
  halo_size: int,
  relative_height: Float[Array, "offsets dim"] | None = None,
  relative_width: Float[Array, "offsets dim"] | None = None,
  bias: Float[Array, "heads queries keys"] | None = None,
  stride: int = 1,
  scale: float | None = None,
  scale_positions: bool = False,
  mask_padding: bool = False,
  implementation: str = "auto",
) -> Float[Array, "batch query_height query_width heads v_dim"]:
  """Attention of each block of queries to the block and a halo around it.

  The image is cut into blocks of b x b tokens, b = `block_size`. The queries of
  a block see the window of w x w keys, w = b + 2 h with h = `halo_size`, whose
  middle the block is. With the query at (y, x) in its block and the key at
  (i, j) in the window,

    out = softmax over (i, j) of
      (scale q . k + q . Rh[i - y + w - 1] + q . Rw[j - x + w - 1] + bias)  v

  where Rh and Rw are learned embeddings of relative positions that the heads
  share, and the bias is a number for each head, query and key of a block. The
  first 2 h rows of the embeddings are never read. Beyond the edge of the image
  keys and values are zero; such keys take their share of the softmax unless
  `mask_padding` is True. HaloNet (arXiv 2103.12731), section 2.2 and figure 2.

  With `stride` s, the queries are every s-th token of the image, as a strided
  projection gives them, and y and x count queries: that is how timm attends at
  a lower resolution. Block size 1 gives each token its own window; halo size 0
  with a block as large as the image gives global attention.

  Args:
    q: queries [batch, height / stride, width / stride, heads, dim].
    k: keys of the image [batch, height, width, heads, dim].
    v: values [batch, height, width, heads, v_dim].
    block_size: side b of a block of the image.
    halo_size: tokens h that a window has beyond its block, on each side.
    relative_height: Rh [2 * w - 1, dim], or None for none.
    relative_width: Rw, like `relative_height`.
    bias: [heads, (b / stride)^2, w^2], the same for all blocks, keys beyond the
      edge included; `relative_position.relative_halo_bias` makes it of a table.
      Kernels do not know it.
    stride: tokens of the image for each query, in height and in width.
    scale: factor of the scores of contents; dim ** -0.5 if None.
    scale_positions: whether `scale` multiplies the scores of positions as well.
    mask_padding: whether keys beyond the edge of the image are left out.
    implementation: "auto", "xla" or "pallas"; see `kernels.dispatch`.

  Returns:
    [batch, height / stride, width / stride, heads, v_dim], in the dtype of `q`.

  Raises:
    ValueError: if blocks do not tile the image, `stride` does not divide
      `block_size`, shapes do not agree, or the implementation cannot take the
      arguments.
  """
  checks.same_floats(q=q, k=k, v=v)
  _check_values(k, v)
  positions, options = _prepared(
    q,
    k,
    tables=(relative_height, relative_width),
    bias=bias,
    block_size=block_size,
    halo_size=halo_size,
    stride=stride,
    scale=scale,
    scale_positions=scale_positions,
    mask_padding=mask_padding,
  )
  empty = checks.no_scores(q, k)
  if bias is not None:
    empty = empty or "there is a bias; the kernel has none"
  reasons = {
    "tpu": lambda: empty or halo.unsupported(q, k, v, **options),
    "gpu": lambda: empty or halo_gpu.unsupported_gpu(q, k, v, **options),
  }
  target = dispatch.choose(implementation, reasons)
  if target is None:
    weights = _unnormalized(q, k, *positions, bias, **options)
    out = _weigh(weights, v, block_size, halo_size)
    # Afterwards, since there are fewer outputs than weights.
    out /= weights.sum(-1, keepdims=True)
    return _image(out).astype(q.dtype)
  kernel = {
    "tpu": halo.halo_attention,
    "gpu": halo_gpu.halo_attention_gpu,
  }[target.platform]

  def call(*arrays: Array) -> Array:
    return kernel(*arrays, **options, interpret=target.interpret)

  layouts = ("byxhd", "byxhd", "byxhd", "qkd", "qkd")
  return dispatch.per_device(call, (q, k, v, *positions), layouts, "byxhd")


def halo_attention_weights(
  q: Float[Array, "batch query_height query_width heads dim"],
  k: Float[Array, "batch height width heads dim"],
  *,
  block_size: int,
  halo_size: int,
  relative_height: Float[Array, "offsets dim"] | None = None,
  relative_width: Float[Array, "offsets dim"] | None = None,
  bias: Float[Array, "heads queries keys"] | None = None,
  stride: int = 1,
  scale: float | None = None,
  scale_positions: bool = False,
  mask_padding: bool = False,
) -> Float[Array, "batch rows columns heads queries keys"]:
  """Returns the weights of `halo_attention` in float32: the map.

  Arguments and errors are those of `halo_attention`. With
  `apply_halo_attention_weights` it is the way to look at or to edit the map.

  Returns:
    [batch, rows, columns, heads, queries, keys]: of each block of the image, in
    rows and columns of blocks, its queries and the keys of its window, both
    row by row.
  """
  checks.same_floats(q=q, k=k)
  positions, options = _prepared(
    q,
    k,
    tables=(relative_height, relative_width),
    bias=bias,
    block_size=block_size,
    halo_size=halo_size,
    stride=stride,
    scale=scale,
    scale_positions=scale_positions,
    mask_padding=mask_padding,
  )
  weights = _unnormalized(q, k, *positions, bias, **options)
  return weights / weights.sum(-1, keepdims=True)


def apply_halo_attention_weights(
  weights: Float[Array, "batch rows columns heads queries keys"],
  v: Float[Array, "batch height width heads v_dim"],
  *,
  block_size: int,
  halo_size: int,
) -> Float[Array, "batch query_height query_width heads v_dim"]:
  """Returns what the weights make of the values, in the dtype of `v`.

  Args:
    weights: the map [batch, rows, columns, heads, queries, keys] as
      `halo_attention_weights` gives it.
    v: values of the image [batch, height, width, heads, v_dim].
    block_size: side of a block of the image.
    halo_size: tokens that a window has beyond its block, on each side.

  Raises:
    ValueError: if the weights are not those of such blocks.
  """
  for name, x in (("weights", weights), ("v", v)):
    checks.floating(name, x)
  checks.whole("block_size", block_size, 1)
  checks.whole("halo_size", halo_size, 0)
  batch, height, width, heads, _ = v.shape
  fits = (batch, height // block_size, width // block_size, heads)
  keys = (block_size + 2 * halo_size) ** 2
  side = math.isqrt(weights.shape[-2])
  if (
    (*weights.shape[:4], weights.shape[5]) != (*fits, keys)
    or side**2 != weights.shape[-2]
    or block_size % side
  ):
    raise ValueError(
      f"weights have shape {weights.shape}; values of shape {v.shape}, "
      f"block_size {block_size} and halo_size {halo_size} need {fits}, n * n "
      f"queries and {keys} keys, with n that divides block_size"
    )
  return _image(_weigh(weights, v, block_size, halo_size)).astype(v.dtype)


def _prepared(
  q,
  k,
  *,
  tables,
  bias,
  block_size,
  halo_size,
  stride,
  scale,
  scale_positions,
  mask_padding,
):
  """Returns the embeddings of positions, and what kernels are told besides."""
  if scale is not None:
    checks.number("scale", scale)
  checks.flag("scale_positions", scale_positions)
  checks.flag("mask_padding", mask_padding)
  _check_sizes(q, k, block_size, halo_size, stride)
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  window = block_size + 2 * halo_size
  names = ("relative_height", "relative_width")
  for name, table in zip(names, tables, strict=True):
    _check_table(name, table, window, q.shape[-1])
  _check_bias(bias, q.shape[3], (block_size // stride) ** 2, window**2)
  positions = _position_embeddings(
    *tables,
    queries=block_size // stride,
    window=window,
    dim=q.shape[-1],
    factor=scale if scale_positions else 1.0,
  )
  options = {
    "block_size": block_size,
    "halo_size": halo_size,
    "stride": stride,
    "scale": scale,
    "mask_padding": mask_padding,
  }
  return positions, options


def _unnormalized(
  q: Array,
  k: Array,
  position_height: Array,
  position_width: Array,
  bias: Array | None,
  *,
  block_size: int,
  halo_size: int,
  stride: int,
  scale: float,
  mask_padding: bool,
) -> Array:
  """Returns the weights before their sum is divided by: [B, R, C, N, y x, i j].

  Takes the embeddings of `_position_embeddings`.
  """
  batch, _, _, heads, _ = q.shape
  height, width = k.shape[1:3]
  rows, columns = height // block_size, width // block_size
  side = block_size // stride
  window = block_size + 2 * halo_size
  # [B, R y, C x, N, d] -> [B, R, C, N, y, x, d]
  q = q.reshape(batch, rows, side, columns, side, heads, -1)
  q = q.transpose(0, 1, 3, 5, 2, 4, 6)
  # [B, H, W, N, d] -> [B, R, C, N, i, j, d]
  k = _windows(k, block_size, halo_size)
  tokens = (batch, rows, columns, heads, side * side)
  exact = {"preferred_element_type": jnp.float32}
  scores = scale * jnp.einsum(
    "brcnqd,brcnkd->brcnqk",
    q.reshape(*tokens, q.shape[-1]),
    k.reshape(*tokens[:-1], window * window, k.shape[-1]),
    **exact,
  )
  scores = scores.reshape(*tokens[:-1], side, side, window, window)
  by_row = jnp.einsum("brcnyxd,yid->brcnyxi", q, position_height, **exact)
  by_column = jnp.einsum("brcnyxd,xjd->brcnyxj", q, position_width, **exact)
  scores += by_row[..., :, None] + by_column[..., None, :]
  if bias is not None:
    # [N, y x, i j] -> [1, 1, 1, N, y, x, i, j]
    bias = bias.reshape(1, 1, 1, heads, side, side, window, window)
    scores += bias.astype(jnp.float32)
  if mask_padding:
    inside = jnp.ones((1, height, width, 1, 1), bool)
    inside = _windows(inside, block_size, halo_size)[..., 0]
    # [1, R, C, 1, i, j] -> [1, R, C, 1, 1, 1, i, j]
    inside = inside[:, :, :, :, None, None]
    scores = jnp.where(inside, scores, -jnp.inf)
  scores = scores.reshape(*tokens, window * window)
  greatest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
  return jnp.exp(scores - greatest)


def _weigh(weights: Array, v: Array, block_size: int, halo_size: int) -> Array:
  """Returns [B, R, C, N, y x, d] of weights [B, R, C, N, y x, i j]."""
  v = _windows(v, block_size, halo_size)
  return jnp.einsum(
    "brcnqk,brcnkd->brcnqd",
    weights.astype(v.dtype),
    v.reshape(*v.shape[:4], weights.shape[-1], v.shape[-1]),
    preferred_element_type=jnp.float32,
  )


def _image(out: Array) -> Array:
  """Puts blocks together, [B, R, C, N, y x, d] -> [B, H, W, N, d]."""
  batch, rows, columns, heads, queries, dim = out.shape
  side = math.isqrt(queries)
  out = out.reshape(batch, rows, columns, heads, side, side, dim)
  out = out.transpose(0, 1, 4, 2, 5, 3, 6)
  return out.reshape(batch, rows * side, columns * side, heads, dim)


def _windows(
  x: Shaped[Array, "batch height width heads dim"],
  block_size: int,
  halo_size: int,
) -> Shaped[Array, "batch rows columns heads window window dim"]:
  """Cuts out the window of each block, with zeros beyond the edge."""
  x = _windows_along(x, 1, block_size, halo_size)  # [B, R, i, W, N, d]
  x = _windows_along(x, 3, block_size, halo_size)  # [B, R, i, C, j, N, d]
  return x.transpose(0, 1, 3, 5, 2, 4, 6)


def _windows_along(x: Array, axis: int, block_size: int, halo_size: int):
  """Replaces an axis by two: blocks, and the window of each.

  A window is a few neighbouring blocks, cut to size: slices and one
  concatenation, where a gather would be slow on every accelerator and its
  gradient slower.
  """
  blocks = x.shape[axis] // block_size
  neighbours = -(-2 * halo_size // block_size)
  padding = [(0, 0)] * x.ndim
  end = neighbours * block_size - halo_size
  padding[axis] = (halo_size, end)
  x = jnp.pad(x, padding)
  x = x.reshape(*x.shape[:axis], -1, block_size, *x.shape[axis + 1 :])
  parts = [
    jax.lax.slice_in_dim(x, i, i + blocks, axis=axis)
    for i in range(neighbours + 1)
  ]
  x = jnp.concatenate(parts, axis=axis + 1)
  return jax.lax.slice_in_dim(x, 0, block_size + 2 * halo_size, axis=axis + 1)


def _position_embeddings(
  *tables: Array | None, queries: int, window: int, dim: int, factor: float
) -> tuple[Array, Array]:
  """Returns factor * table[key - query + window - 1] [queries, window, dim].

  Slices instead of a gather, in float32; zeros where there is no table.
  """
  embeddings = []
  for table in tables:
    if table is None:
      embeddings.append(jnp.zeros((queries, window, dim)))
      continue
    starts = range(window - 1, window - 1 - queries, -1)
    rows = jnp.stack([table[start : start + window] for start in starts])
    embeddings.append(factor * rows.astype(jnp.float32))
  return tuple(embeddings)


def _check_sizes(
  q: Array, k: Array, block_size: int, halo_size: int, stride: int
) -> None:
  checks.whole("block_size", block_size, 1)
  checks.whole("halo_size", halo_size, 0)
  checks.whole("stride", stride, 1)
  if k.ndim != 5 or 0 in k.shape[3:]:
    raise ValueError(
      f"k has shape {k.shape}; it must be [batch, height, width, heads, dim], "
      "the last two not 0"
    )
  batch, height, width, heads, _ = k.shape
  if height % block_size or width % block_size:
    raise ValueError(
      f"k is {height} x {width}, which blocks of block_size {block_size} do "
      f"not tile; height and width must be multiples of {block_size}: pad them"
    )
  if block_size % stride:
    raise ValueError(
      f"stride is {stride}, which does not divide block_size {block_size}; use "
      "stride 1 and average-pool the output instead"
    )
  expected = (batch, height // stride, width // stride, heads, k.shape[-1])
  if q.shape != expected:
    raise ValueError(
      f"q has shape {q.shape}; keys of shape {k.shape} and stride {stride} "
      f"need {expected}"
    )


def _check_values(k: Array, v: Array) -> None:
  if v.shape[:-1] != k.shape[:-1]:
    raise ValueError(
      f"v has shape {v.shape}; keys of shape {k.shape} need the same batch, "
      "height, width and heads"
    )


def _check_bias(
  bias: Array | None, heads: int, queries: int, keys: int
) -> None:
  if bias is None:
    return
  checks.floating("bias", bias)
  if bias.shape != (heads, queries, keys):
    raise ValueError(
      f"bias has shape {bias.shape}; {heads} heads, {queries} queries and "
      f"{keys} keys of a block need {(heads, queries, keys)}"
    )


def _check_table(name: str, table: Array | None, window: int, dim: int) -> None:
  expected = (2 * window - 1, dim)
  if table is None:
    return
  checks.floating(name, table)
  if table.shape != expected:
    raise ValueError(
      f"{name} has shape {table.shape}; windows of {window} tokens and heads "
      f"of dimension {dim} need {expected}"
    )
