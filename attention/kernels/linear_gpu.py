"""Linear attention on NVIDIA GPUs, in two kernels.

The first sums up the memory `sum_j g(b_j) h(c_j)^T`: for causal attention it
walks along the chunks of a head and leaves behind the memory before each. The
second reads it, out_i = f(a_i) . memory, and adds what keys of the own chunk
say. All three gradients are of the same form (`linear_sums`). Features stay in
registers.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention import features
from attention.kernels import linear_sums, triton

# Maps of one channel by itself; softmax needs all channels in one tile.
ELEMENTWISE = (
  features.identity,
  features.relu,
  features.relu_epsilon,
  features.elu_plus_one,
  features.sigmoid,
)
# Positions in a chunk, and the most channels of a head.
CHUNK = 64
MOST_DIM = 128
# Channels of a row that are read at once.
ALIGNMENT = 8
# Programs that share the keys of a call which is not causal.
PROGRAMS = 1024


def unsupported_gpu(
  q, k, v, *, feature_map, decay, state, return_state
) -> str | None:
  """Says why the kernel cannot take these arguments, or returns None."""
  dim, v_dim = q.shape[-1], v.shape[-1]
  whole = triton.tile_size(dim) == dim
  if feature_map not in ELEMENTWISE and not (
    feature_map is features.softmax and whole
  ):
    return (
      f"feature_map is {feature_map!r}; the kernel has "
      f"{', '.join(f.__name__ for f in ELEMENTWISE)}, and softmax for powers "
      "of two"
    )
  if decay is not None:
    return "decay is given; the kernel's memory does not decay"
  if state is not None or return_state:
    return "a state is passed on; the kernel keeps its memory to itself"
  if max(dim, v_dim) > MOST_DIM:
    return f"heads are wider than {MOST_DIM}: q has {dim}, v {v_dim}"
  return triton.unsupported_dtypes(q=q, k=k, v=v)


def weighted_sums(q, k, terms, *, feature_map, causal, interpret=False):
  """Returns sum_j phi(q_i) . phi(k_j) terms_j, float32.

  Args:
    q: [batch, q_len, heads, dim].
    k: [batch, kv_len, heads, dim].
    terms: [batch, kv_len, heads, width]; zero rows for padding.
    feature_map: phi.
    causal: whether only j <= i count.
    interpret: whether Pallas's interpreter runs the kernel.
  """
  options = (("full", q.dtype == jnp.float32), ("interpret", interpret))
  width = terms.shape[-1]
  # Rows of an odd width would be read element by element.
  terms = jnp.pad(terms, ((0, 0), (0, 0), (0, 0), (0, -width % ALIGNMENT)))
  sums = linear_sums.weighted_sums(
    _read, options, feature_map, causal, q, k, terms
  )
  return sums[..., :width]


def _read(a, b, c, maps, order, dtype, pull=None, *, full, interpret):
  """Returns f(a_i) . sum_j g(b_j) h(c_j)^T, or its pullback through a map.

  Args:
    a: [batch, q_len, heads, width]; b, c: [batch, kv_len, heads, ...].
    maps: f, g and h, of which g or h is the identity.
    order: "all", "before" (j <= i) or "after" (j >= i).
    dtype: of the result.
    pull: (phi, x [batch, q_len, heads, dim]): return the vector-Jacobian
      product of phi at x with the result instead.
    full: whether products are full float32.
    interpret: whether Pallas's interpreter runs the kernels.
  """
  batch, q_len, heads, _ = a.shape
  chunks = pl.cdiv(b.shape[1], CHUNK)
  # A memory for each chunk, the one before it; or, since nobody asks which key
  # came first, one for each of as many programs as fill the GPU, to be summed.
  parts = chunks
  if order == "all":
    parts = min(chunks, max(1, PROGRAMS // (batch * heads)))
  widths = tuple(_width(x) for x in (b, c))
  memory = jax.ShapeDtypeStruct((batch, heads, parts, *widths), jnp.float32)
  options = {"num_warps": 4, "num_stages": 2, "interpret": interpret}
  products = 2 * batch * heads * math.prod(widths)
  memory = triton.pallas_call(
    functools.partial(_sum_kernel, maps=maps[1:], order=order, full=full),
    name=f"linear_attention_memory_{order}",
    grid=(parts if order == "all" else 1, heads, batch),
    out_shape=memory,
    flops=products * chunks * CHUNK,
    bytes_accessed=triton.nbytes(b, c, memory),
    transcendentals=0,
    **options,
  )(b, c)
  own = (b, c)
  if order == "all":
    memory, own = memory.sum(axis=2, keepdims=True), None
  else:
    products += 2 * batch * heads * CHUNK * sum(widths)
  point = None if pull is None else pull[1]
  width = c.shape[-1] if pull is None else point.shape[-1]
  out = jax.ShapeDtypeStruct((batch, q_len, heads, width), dtype)
  return triton.pallas_call(
    functools.partial(
      _read_kernel,
      maps=maps,
      order=order,
      full=full,
      pull=None if pull is None else pull[0],
    ),
    name=f"linear_attention_read_{order}",
    grid=(pl.cdiv(q_len, CHUNK), heads, batch),
    out_shape=out,
    flops=products * q_len,
    bytes_accessed=triton.nbytes(a, own, memory, point, out),
    transcendentals=0,
    **options,
  )(a, own, memory, point)


def _sum_kernel(b_ref, c_ref, memory_ref, *, maps, order, full):
  """Sums g(b_j) h(c_j)^T, [batch, heads, parts, features, features].

  A memory is a list of lines of tiles, as `triton.pieces` cuts the channels of
  b and c.
  """
  part, head, batch = map(pl.program_id, range(3))
  g, h = maps
  chunks, parts = pl.cdiv(b_ref.shape[1], CHUNK), memory_ref.shape[2]

  def add(chunk, memory):
    rows = chunk * CHUNK + jnp.arange(CHUNK)
    b, c = (
      _load(b_ref, batch, rows, head, g),
      _load(c_ref, batch, rows, head, h),
    )
    dot = functools.partial(triton.dot, transpose_a=True, full=full)
    return [
      [x + dot(left, right) for x, right in zip(line, c, strict=True)]
      for line, left in zip(memory, b, strict=True)
    ]

  def save(part, memory):
    for index, x in _memory_tiles(memory_ref, batch, head, part, memory):
      triton.store(memory_ref, index, x)

  memory = [
    [jnp.zeros((rows, columns), jnp.float32) for _, columns in _pieces(c_ref)]
    for _, rows in _pieces(b_ref)
  ]
  if order == "all":
    size = pl.cdiv(chunks, parts)
    start = part * size
    stop = jnp.minimum(start + size, chunks)
    save(part, lax.fori_loop(start, stop, add, memory))
    return

  # The memory is saved before the chunk is added: `_read_kernel` takes the own
  # chunk apart.
  def step(i, memory):
    chunk = i if order == "before" else chunks - 1 - i
    save(chunk, memory)
    return add(chunk, memory)

  lax.fori_loop(0, chunks, step, memory)


def _read_kernel(
  a_ref, own_refs, memory_ref, point_ref, out_ref, *, maps, order, full, pull
):
  """Reads f(a_i) . memory, adds the own chunk, and pulls back through a map."""
  chunk, head, batch = map(pl.program_id, range(3))
  f, g, h = maps
  rows = chunk * CHUNK + jnp.arange(CHUNK)
  dot = functools.partial(triton.dot, full=full)
  a = _load(a_ref, batch, rows, head, f)
  # No tiles, only as many places: they are read one at a time.
  memory = [[None] * len(_tiles(memory_ref.shape[4]))] * len(a)
  part = 0 if order == "all" else chunk
  out = [0.0] * len(memory[0])
  for i, (index, _) in enumerate(
    _memory_tiles(memory_ref, batch, head, part, memory)
  ):
    left, column = divmod(i, len(out))
    out[column] += dot(a[left], triton.load(memory_ref, index))
  if own_refs is not None:
    b, c = (
      _load(ref, batch, rows, head, phi)
      for ref, phi in zip(own_refs, (g, h), strict=True)
    )
    weights = sum(
      dot(x, y, transpose_b=True) for x, y in zip(a, b, strict=True)
    )
    # Scores within the chunk, [CHUNK, CHUNK], which have an order.
    i, j = rows[:, None], rows[None, :]
    weights = jnp.where(j <= i if order == "before" else j >= i, weights, 0.0)
    out = [x + dot(weights, part) for x, part in zip(out, c, strict=True)]
  points = [None] * len(out)
  if pull is not None:
    points = _load(point_ref, batch, rows, head, features.identity)
  for (start, size), x, point in zip(
    _pieces(out_ref), out, points, strict=True
  ):
    if pull is not None:
      (x,) = jax.vjp(pull, point)[1](x)
    index, tails = _index(out_ref, batch, rows, head, start, size)
    triton.store(out_ref, index, x, tails=tails)


def _load(ref, batch, rows, head, phi):
  """Returns features of some rows in pieces, zero where there is no channel."""
  pieces = []
  for start, size in _pieces(ref):
    index, tails = _index(ref, batch, rows, head, start, size)
    x = phi(triton.load(ref, index, tails=tails).astype(jnp.float32))
    # A map may make features of channels that are not there: phi(0) = 1.
    if start + size > ref.shape[3]:
      x = jnp.where(index[3] < ref.shape[3], x, 0.0)
    pieces.append(x)
  return pieces


def _index(ref, batch, rows, head, start, size):
  """Returns the index of a piece, and along which axes it ends beyond."""
  channels = start + jnp.arange(size)[None, :]
  tails = triton.tail(1, ref.shape[1], CHUNK)
  if start + size > ref.shape[3]:
    tails += (3,)
  return (batch, rows[:, None], head, channels), tails


def _pieces(ref):
  return triton.pieces(ref.shape[3])


def _width(x):
  """Returns the channels of an array in whole tiles."""
  return sum(size for _, size in triton.pieces(x.shape[3]))


def _tiles(width):
  """Cuts what `_width` returned as `triton.pieces` cut it."""
  return triton.pieces(width)


def _memory_tiles(ref, batch, head, part, memory):
  """Yields where each tile of a memory lies, row by row, and the tile."""
  lines = zip(_tiles(ref.shape[3]), memory, strict=True)
  for (row, rows), line in lines:
    columns = zip(_tiles(ref.shape[4]), line, strict=True)
    for (column, width), x in columns:
      index = (
        batch,
        head,
        part,
        row + jnp.arange(rows)[:, None],
        column + jnp.arange(width)[None, :],
      )
      yield index, x
