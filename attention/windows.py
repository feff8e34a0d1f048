"""Block and grid attention of MaxViT: local windows and dilated grids.

Both are functions of the whole image, so that a kernel may fold the partition
into the way it reads memory. "MaxViT: Multi-Axis Vision Transformer"
(arXiv 2204.01697), section 3.2 and appendix A.
"""

from collections.abc import Callable

from jaxtyping import Array, Float, Shaped

from attention import checks
from attention.dot_product import dot_product_attention
from attention.kernels import dispatch, window, window_gpu


def block_partition(
  x: Shaped[Array, "batch height width *rest"], window_size: int
) -> Shaped[Array, "batch windows tokens *rest"]:
  """Cuts an image into windows of `window_size` by `window_size` neighbours.

  Args:
    x: [batch, height, width, ...].
    window_size: side P of a window.

  Returns:
    [batch, height / P * width / P, P * P, ...], windows and the tokens in them
    in row-major order.

  Raises:
    ValueError: if P does not divide height and width.
  """
  rows, columns = _split(x, window_size)
  batch, _, _, *rest = x.shape
  p = window_size
  # [B, H/P, P, W/P, P, ...] -> [B, H/P, W/P, P, P, ...]
  x = x.reshape(batch, rows, p, columns, p, *rest).swapaxes(2, 3)
  return x.reshape(batch, rows * columns, p * p, *rest)


def block_unpartition(
  x: Shaped[Array, "batch windows tokens *rest"], height: int, width: int
) -> Shaped[Array, "batch {height} {width} *rest"]:
  """Puts the windows of `block_partition` back into an image.

  Args:
    x: [batch, windows, tokens, ...].
    height: height of the image.
    width: width of the image.

  Raises:
    ValueError: if the windows do not tile such an image.
  """
  p = _side(x, height, width)
  batch, _, _, *rest = x.shape
  # [B, H/P, W/P, P, P, ...] -> [B, H/P, P, W/P, P, ...]
  x = x.reshape(batch, height // p, width // p, p, p, *rest).swapaxes(2, 3)
  return x.reshape(batch, height, width, *rest)


def grid_partition(
  x: Shaped[Array, "batch height width *rest"], window_size: int
) -> Shaped[Array, "batch windows tokens *rest"]:
  """Cuts an image into grids of `window_size` by `window_size` far tokens.

  With G = `window_size`, the token (i, j) of the grid (r, s) is the one at
  (i * height / G + r, j * width / G + s): neighbours in a grid are height / G
  rows or width / G columns apart.

  Args:
    x: [batch, height, width, ...].
    window_size: side G of a grid.

  Returns:
    [batch, height / G * width / G, G * G, ...], grids and the tokens in them
    in row-major order.

  Raises:
    ValueError: if G does not divide height and width.
  """
  rows, columns = _split(x, window_size)
  batch, _, _, *rest = x.shape
  g = window_size
  x = x.reshape(batch, g, rows, g, columns, *rest)
  # [B, G, H/G, G, W/G, ...] -> [B, H/G, W/G, G, G, ...]
  order = (0, 2, 4, 1, 3, *range(5, x.ndim))
  return x.transpose(order).reshape(batch, rows * columns, g * g, *rest)


def grid_unpartition(
  x: Shaped[Array, "batch windows tokens *rest"], height: int, width: int
) -> Shaped[Array, "batch {height} {width} *rest"]:
  """Puts the grids of `grid_partition` back into an image.

  Args:
    x: [batch, windows, tokens, ...].
    height: height of the image.
    width: width of the image.

  Raises:
    ValueError: if the grids do not tile such an image.
  """
  g = _side(x, height, width)
  batch, _, _, *rest = x.shape
  x = x.reshape(batch, height // g, width // g, g, g, *rest)
  # [B, H/G, W/G, G, G, ...] -> [B, G, H/G, G, W/G, ...]
  order = (0, 3, 1, 4, 2, *range(5, x.ndim))
  return x.transpose(order).reshape(batch, height, width, *rest)


def block_attention(
  q: Float[Array, "batch height width heads dim"],
  k: Float[Array, "batch height width heads dim"],
  v: Float[Array, "batch height width heads v_dim"],
  *,
  window_size: int,
  bias: Float[Array, "heads tokens tokens"] | None = None,
  scale: float | None = None,
  implementation: str = "auto",
) -> Float[Array, "batch height width heads v_dim"]:
  """Attention among the tokens of each P x P window, P = `window_size`.

  `softmax(scale * q k^T + bias) v` within the windows of `block_partition`:
  "block attention" of MaxViT (arXiv 2204.01697, equation 3).

  Args:
    q: queries of the image [batch, height, width, heads, dim].
    k: keys, like `q`.
    v: values [batch, height, width, heads, v_dim].
    window_size: side P of a window; it must divide height and width.
    bias: [heads, P * P, P * P], added to the scores of every window.
    scale: factor of the scores; dim ** -0.5 if None.
    implementation: "auto", "xla" or "pallas"; see `kernels.dispatch`.

  Returns:
    [batch, height, width, heads, v_dim] in the dtype of `q`.

  Raises:
    ValueError: if P does not divide height and width, shapes do not agree, or
      the implementation cannot take the arguments.
  """
  options = {"window_size": window_size, "scale": scale}
  return _windowed(q, k, v, bias, False, implementation, **options)


def grid_attention(
  q: Float[Array, "batch height width heads dim"],
  k: Float[Array, "batch height width heads dim"],
  v: Float[Array, "batch height width heads v_dim"],
  *,
  window_size: int,
  bias: Float[Array, "heads tokens tokens"] | None = None,
  scale: float | None = None,
  implementation: str = "auto",
) -> Float[Array, "batch height width heads v_dim"]:
  """Attention among the tokens of each dilated G x G grid, G = `window_size`.

  `softmax(scale * q k^T + bias) v` within the grids of `grid_partition`: "grid
  attention" of MaxViT (arXiv 2204.01697, equation 4). Arguments, result and
  errors are those of `block_attention`.
  """
  options = {"window_size": window_size, "scale": scale}
  return _windowed(q, k, v, bias, True, implementation, **options)


def _windowed(
  q: Array,
  k: Array,
  v: Array,
  bias: Array | None,
  grid: bool,
  implementation: str,
  *,
  window_size: int,
  scale: float | None,
) -> Array:
  _check(q, k, v, bias, window_size, scale)
  empty = checks.no_scores(q, k)
  reasons = {
    "tpu": lambda: (
      empty or window.unsupported(q, k, v, bias, window_size=window_size)
    ),
    "gpu": lambda: (
      empty
      or window_gpu.unsupported_gpu(q, k, v, bias, window_size=window_size)
    ),
  }
  target = dispatch.choose(implementation, reasons)
  if target is None:
    return _reference(q, k, v, bias, grid, window_size, scale)
  kernel = {
    "tpu": window.window_attention,
    "gpu": window_gpu.window_attention_gpu,
  }[target.platform]

  def call(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    return kernel(
      q,
      k,
      v,
      bias,
      window_size=window_size,
      grid=grid,
      scale=scale,
      interpret=target.interpret,
    )

  arrays = (q, k, v) if bias is None else (q, k, v, bias)
  layouts = ("byxhd", "byxhd", "byxhd", "hij")[: len(arrays)]
  return dispatch.per_device(call, arrays, layouts, "byxhd")


def _reference(
  q: Array,
  k: Array,
  v: Array,
  bias: Array | None,
  grid: bool,
  window_size: int,
  scale: float | None,
) -> Array:
  partition: Callable = grid_partition if grid else block_partition
  unpartition: Callable = grid_unpartition if grid else block_unpartition
  windows = [partition(x, window_size) for x in (q, k, v)]
  out = dot_product_attention(*windows, bias=bias, scale=scale)
  return unpartition(out, *q.shape[1:3])


def _check(
  q: Array,
  k: Array,
  v: Array,
  bias: Array | None,
  window_size: int,
  scale: float | None,
) -> None:
  checks.same_floats(q=q, k=k, v=v)
  checks.whole("window_size", window_size, 1)
  if scale is not None:
    checks.number("scale", scale)
  if bias is not None:
    checks.floating("bias", bias)
  if q.ndim != 5 or 0 in q.shape[3:]:
    raise ValueError(
      f"q has shape {q.shape}; it must be [batch, height, width, heads, dim], "
      "the last two not 0"
    )
  heads = q.shape[3]
  tokens = window_size**2
  if bias is not None and bias.shape != (heads, tokens, tokens):
    raise ValueError(
      f"bias has shape {bias.shape}; {heads} heads and window_size "
      f"{window_size} need {(heads, tokens, tokens)}"
    )
  for name, x in (("k", k), ("v", v)):
    if x.shape[:-1] != q.shape[:-1]:
      raise ValueError(
        f"{name} has shape {x.shape}; queries of shape {q.shape} need the "
        "same batch, height, width and heads"
      )
  _split(q, window_size)


def _split(x: Array, window_size: int) -> tuple[int, int]:
  """Returns how many windows fit into the height and the width."""
  checks.whole("window_size", window_size, 1)
  height, width = x.shape[1:3]
  if height % window_size or width % window_size:
    raise ValueError(
      f"x is {height} x {width}, which windows of window_size {window_size} do "
      f"not tile; sizes that fit are {_multiples(height, window_size)} high "
      f"and {_multiples(width, window_size)} wide"
    )
  return height // window_size, width // window_size


def _multiples(size: int, step: int) -> str:
  """Names the multiples of `step` around `size`."""
  below = size // step * step
  if below == size:
    return str(size)
  return f"{below} or {below + step}" if below else str(step)


def _side(x: Array, height: int, width: int) -> int:
  """Returns the side of the square windows that `x` holds."""
  windows, tokens = x.shape[1:3]
  side = round(tokens**0.5)
  if (
    side * side != tokens
    or height % side
    or width % side
    or windows * tokens != height * width
  ):
    raise ValueError(
      f"x has shape {x.shape}, {windows} windows of {tokens} tokens, which do "
      f"not tile height {height} x width {width}"
    )
  return side
