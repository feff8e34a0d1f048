"""Block and grid attention of MaxViT on NVIDIA GPUs.

A window of 7 x 7 tokens is one tile of 64 x 64 scores. The kernel reads the
tokens of a window straight out of the image, whichever way the partition
gathers them, so that no copy of the image is made; and it keeps the tile of the
bias while it goes through many windows of a head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import triton

# Programs of one launch: some for each of the at most 148 multiprocessors of a
# GPU. The number is fixed so that sums over programs are always in one order.
FORWARD_PROGRAMS = 2048
BACKWARD_PROGRAMS = 1024
# Most elements in a tile of scores, and most tokens in a window.
TILE = 128 * 128
MOST_TOKENS = 256
MOST_FLOAT32_TOKENS = 64
MOST_DIM = 128


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Shapes and options, all known before the program runs."""

  batch: int
  height: int
  width: int
  heads: int
  dim: int
  v_dim: int
  side: int
  grid: bool
  scale: float
  interpret: bool

  @property
  def tokens(self):
    return self.side**2

  @property
  def rows(self):
    return self.height // self.side

  @property
  def columns(self):
    return self.width // self.side

  @property
  def windows(self):
    return self.batch * self.rows * self.columns

  @property
  def block_k(self):
    return triton.tile_size(self.tokens)

  @property
  def block_q(self):
    return min(self.block_k, TILE // self.block_k)

  @property
  def q_blocks(self):
    return pl.cdiv(self.tokens, self.block_q)

  @property
  def num_warps(self):
    return 4 if self.block_q * self.block_k <= 64 * 64 else 8

  def chunk(self, programs):
    """Returns how many windows each of so many programs goes through."""
    return pl.cdiv(self.windows, max(1, programs // self.heads))


def unsupported_gpu(q, k, v, bias, *, window_size: int) -> str | None:
  """Says why the kernel cannot take these arguments, or returns None.

  Arguments are those of `window_attention_gpu`.
  """
  del bias
  if window_size**2 > MOST_TOKENS:
    return (
      f"window_size is {window_size}; the kernel takes windows of at most "
      f"{MOST_TOKENS} tokens"
    )
  for name, x in (("q", q), ("v", v)):
    if x.shape[-1] > MOST_DIM:
      return (
        f"{name} has heads of dimension {x.shape[-1]}; the kernel takes at "
        f"most {MOST_DIM}"
      )
  if q.dtype == jnp.float32 and window_size**2 > MOST_FLOAT32_TOKENS:
    # Products in full float32 have no matrix unit and fill the registers.
    return (
      f"window_size is {window_size}; the kernel takes float32 windows of at "
      f"most {MOST_FLOAT32_TOKENS} tokens"
    )
  return triton.unsupported_dtypes(q=q, k=k, v=v)


def window_attention_gpu(
  q,
  k,
  v,
  bias,
  *,
  window_size: int,
  grid: bool,
  scale: float | None = None,
  interpret: bool = False,
):
  """Returns the attention within windows, as `attention.windows` defines it.

  Arguments and result are those of `attention.kernels.window.window_attention`;
  values may have heads of another dimension than queries.
  """
  batch, height, width, heads, dim = q.shape
  plan = _Plan(
    batch=batch,
    height=height,
    width=width,
    heads=heads,
    dim=dim,
    v_dim=v.shape[-1],
    side=window_size,
    grid=grid,
    scale=dim**-0.5 if scale is None else scale,
    interpret=interpret,
  )
  flat = (x.reshape(batch, height * width, heads, -1) for x in (q, k, v))
  if bias is not None:
    bias = _padded_bias(plan, bias)
  return _attention(plan, *flat, bias).reshape(*q.shape[:-1], v.shape[-1])


def _padded_bias(plan, bias):
  """Returns whole tiles of bias, which hide the keys that do not exist."""
  rows = plan.q_blocks * plan.block_q - plan.tokens
  columns = plan.block_k - plan.tokens
  bias = jnp.pad(bias, ((0, 0), (0, rows), (0, 0)))
  bias = jnp.pad(bias, ((0, 0), (0, 0), (0, columns)), constant_values=-jnp.inf)
  return bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan, q, k, v, bias):
  out = jax.ShapeDtypeStruct(v.shape, q.dtype)
  chunk = plan.chunk(FORWARD_PROGRAMS)
  scores = plan.windows * plan.heads * plan.q_blocks * plan.block_q
  scores *= plan.block_k
  return triton.pallas_call(
    functools.partial(_forward_kernel, plan=plan, chunk=chunk),
    name=f"{'grid' if plan.grid else 'block'}_attention_forward",
    grid=(plan.heads, plan.q_blocks, pl.cdiv(plan.windows, chunk)),
    out_shape=out,
    flops=2 * scores * (plan.dim + plan.v_dim),
    bytes_accessed=triton.nbytes(q, k, v, bias, out),
    transcendentals=scores,
    num_warps=plan.num_warps,
    num_stages=2,
    interpret=plan.interpret,
  )(q, k, v, bias)


def _attention_forward(plan, q, k, v, bias):
  return _attention(plan, q, k, v, bias), (q, k, v, bias)


def _attention_backward(plan, residuals, out_bar):
  q, k, v, bias = residuals
  run = functools.partial(_gradients, plan, q, k, v, bias, out_bar)
  if bias is None:
    return *run(inputs=True, scores=False)[:3], None
  if plan.q_blocks == 1:
    *inputs, bias_bar = run(inputs=True, scores=True)
  else:
    # Sums over windows and sums over queries cannot both stay in registers.
    inputs = run(inputs=True, scores=False)[:3]
    bias_bar = run(inputs=False, scores=True)[3]
  return *inputs, bias_bar.sum(axis=0).astype(bias.dtype)


def _gradients(plan, q, k, v, bias, out_bar, *, inputs: bool, scores: bool):
  """Returns the gradients to q, k and v, and partial sums of that to the bias.

  What is not asked for by `inputs` and `scores` is None.
  """
  chunk = plan.chunk(BACKWARD_PROGRAMS)
  chunks = pl.cdiv(plan.windows, chunk)
  out_shape = [None] * 4
  if inputs:
    out_shape[:3] = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  if scores:
    # [chunks, heads, padded tokens, padded tokens]
    out_shape[3] = jax.ShapeDtypeStruct((chunks, *bias.shape), jnp.float32)
  # One program sees all queries of a window, or one block of them.
  split = 1 if inputs else plan.q_blocks
  count = plan.windows * plan.heads * plan.q_blocks * plan.block_q
  count *= plan.block_k
  products = (plan.dim + plan.v_dim) * (1 + 2 * inputs) + plan.dim * inputs
  kind = "grid" if plan.grid else "block"
  return triton.pallas_call(
    functools.partial(_backward_kernel, plan=plan, chunk=chunk),
    name=f"{kind}_attention_{'backward' if inputs else 'bias_gradient'}",
    grid=(plan.heads, split, chunks),
    out_shape=out_shape,
    flops=2 * count * products,
    bytes_accessed=triton.nbytes(q, k, v, out_bar, bias, out_shape),
    transcendentals=count * (1 + inputs),
    num_warps=plan.num_warps,
    num_stages=1,
    interpret=plan.interpret,
  )(q, k, v, bias, out_bar)


_attention.defvjp(_attention_forward, _attention_backward)


def _forward_kernel(q_ref, k_ref, v_ref, bias_ref, out_ref, *, plan, chunk):
  head, q_block = pl.program_id(0), pl.program_id(1)
  queries = q_block * plan.block_q + jnp.arange(plan.block_q)
  keys = jnp.arange(plan.block_k)
  # [block_q, block_k], read once: it is the same in all windows of a head.
  bias = _load_bias(bias_ref, head, queries[:, None], keys[None, :])

  def step(window, _):
    q = _load(plan, q_ref, window, head, queries)
    k = _load(plan, k_ref, window, head, keys)
    v = _load(plan, v_ref, window, head, keys)
    scores = _scores(plan, q, k, bias, keys[None, :])
    weights = triton.exp(scores - _peaks(scores)[:, None])
    weights /= _totals(weights)[:, None]
    out = triton.dot(weights.astype(v.dtype), v)
    _store(plan, out_ref, window, head, queries, out)

  _for_windows(plan, chunk, step, None)


def _backward_kernel(
  q_ref,
  k_ref,
  v_ref,
  bias_ref,
  out_bar_ref,
  q_bar_ref,
  k_bar_ref,
  v_bar_ref,
  bias_bar_ref,
  *,
  plan,
  chunk,
):
  head, own_block, chunk_index = map(pl.program_id, range(3))
  inputs = q_bar_ref is not None
  keys = jnp.arange(plan.block_k)

  def one_block(window, k, v, q_block):
    queries = q_block * plan.block_q + jnp.arange(plan.block_q)
    q = _load(plan, q_ref, window, head, queries)
    out_bar = _load(plan, out_bar_ref, window, head, queries)
    bias = _load_bias(bias_ref, head, queries[:, None], keys[None, :])
    scores = _scores(plan, q, k, bias, keys[None, :])
    peak = _peaks(scores)
    scores = triton.exp(scores - peak[:, None])
    total = _totals(scores)
    weights = scores / total[:, None]
    weights_bar = triton.dot(out_bar, v, transpose_b=True)
    # What the softmax takes away, from the weights: the output is not at hand.
    mean = jnp.sum(weights * weights_bar, axis=1)
    scores_bar = weights * (weights_bar - mean[:, None])
    if not inputs:
      return scores_bar, None, None
    q_bar = triton.dot(scores_bar.astype(k.dtype), k) * plan.scale
    _store(plan, q_bar_ref, window, head, queries, q_bar)
    # The same once more with keys as rows: two products are cheaper than to
    # transpose weights from the registers of one layout to those of another.
    bias = _load_bias(bias_ref, head, queries[None, :], keys[:, None])
    scores = _scores(plan, k, q, bias, keys[:, None])
    weights = triton.exp(scores - peak[None, :]) / total[None, :]
    v_bar = triton.dot(weights.astype(out_bar.dtype), out_bar)
    weights_bar = triton.dot(v, out_bar, transpose_b=True)
    turned_bar = weights * (weights_bar - mean[None, :])
    k_bar = triton.dot(turned_bar.astype(q.dtype), q) * plan.scale
    return scores_bar, k_bar, v_bar

  def step(window, bias_bar):
    k = _load(plan, k_ref, window, head, keys)
    v = _load(plan, v_ref, window, head, keys)
    if inputs and plan.q_blocks > 1:
      # Keys get gradients from all queries of the window: one program has all.
      def add(q_block, sums):
        _, *more = one_block(window, k, v, q_block)
        return [a + b for a, b in zip(sums, more, strict=True)]

      zeros = [jnp.zeros(x.shape, jnp.float32) for x in (k, v)]
      k_bar, v_bar = lax.fori_loop(0, plan.q_blocks, add, zeros)
    else:
      scores_bar, k_bar, v_bar = one_block(window, k, v, own_block)
    if inputs:
      _store(plan, k_bar_ref, window, head, keys, k_bar)
      _store(plan, v_bar_ref, window, head, keys, v_bar)
    return None if bias_bar is None else bias_bar + scores_bar

  bias_bar = None
  if bias_bar_ref is not None:
    bias_bar = jnp.zeros((plan.block_q, plan.block_k), jnp.float32)
  bias_bar = _for_windows(plan, chunk, step, bias_bar)
  if bias_bar is not None:
    queries = own_block * plan.block_q + jnp.arange(plan.block_q)
    index = (chunk_index, head, queries[:, None], keys[None, :])
    triton.store(bias_bar_ref, index, bias_bar)


def _for_windows(plan, chunk, step, carry):
  """Runs `step(window, carry)` for the windows of this program."""
  start = pl.program_id(2) * chunk
  stop = jnp.minimum(start + chunk, plan.windows)
  return lax.fori_loop(start, stop, step, carry)


def _scores(plan, rows, columns, bias, keys):
  """Returns [rows, columns], -inf for keys that only fill the tile.

  A bias hides them itself (`_padded_bias`). -inf is safe as each row has keys,
  or is dropped.
  """
  scores = triton.dot(rows, columns, transpose_b=True) * plan.scale
  if bias is not None:
    return scores + bias
  if plan.tokens < plan.block_k:
    return jnp.where(keys < plan.tokens, scores, -jnp.inf)
  return scores


def _peaks(scores):
  """Returns the maxima of rows, 0 where a bias of -inf hides all keys.

  There -inf - 0 has weight zero, where -inf - -inf would be NaN.
  """
  peak = jnp.max(scores, axis=1)
  return jnp.where(peak == -jnp.inf, 0.0, peak)


def _totals(weights):
  """Returns the sums of rows, 1 where all weights are zero, which then stay."""
  total = jnp.sum(weights, axis=1)
  return jnp.where(total == 0.0, 1.0, total)


def _load_bias(bias_ref, head, queries, keys):
  if bias_ref is None:
    return None
  bias = triton.load(bias_ref, (head, queries, keys))
  return bias.astype(jnp.float32)


def _load(plan, ref, window, head, tokens):
  index, tails = _index(plan, ref, window, head, tokens)
  return triton.load(ref, index, tails=tails)


def _store(plan, ref, window, head, tokens, value):
  index, tails = _index(plan, ref, window, head, tokens)
  triton.store(ref, index, value, tails=tails)


def _index(plan, ref, window, head, tokens):
  """Returns where in [batch, height * width, heads, dim] a window lies.

  A token that the window does not have lies beyond the end of the image.
  """
  image, window = triton.divide(window, plan.rows * plan.columns)
  window_row, window_column = triton.divide(window, plan.columns)
  row, column = triton.divide(tokens, plan.side)
  if plan.grid:
    y = row * plan.rows + window_row
    x = column * plan.columns + window_column
  else:
    y = window_row * plan.side + row
    x = window_column * plan.side + column
  # Loads and stores drop what lies beyond the end of an axis.
  pixels = plan.height * plan.width
  pixel = jnp.where(tokens < plan.tokens, y * plan.width + x, pixels)
  dim = ref.shape[-1]
  tile = triton.tile_size(dim)
  index = (image, pixel[:, None], head, jnp.arange(tile)[None, :])
  tails = (
    *triton.tail(1, plan.tokens, tokens.shape[0]),
    *triton.tail(3, dim, tile),
  )
  return index, tails
