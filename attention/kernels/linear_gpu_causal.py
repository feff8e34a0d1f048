"""Causal sums of linear attention on NVIDIA GPUs, in two kernels.

The first sums up the memory `sum_j g(b_j) h(c_j)^T`: it walks along the chunks
of a head and leaves behind the memory before each. The second reads it, out_i =
f(a_i) . memory, and adds what keys of the own chunk say. All three gradients
are of the same form, with j >= i for what a key has of the queries after it, so
that the kernels are their own backward pass. Features stay in registers.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention import features
from attention.kernels import linear_gpu_tiles as tiles
from attention.kernels import triton
from attention.kernels.linear_gpu_tiles import CHUNK

# Channels of a row that are read at once.
ALIGNMENT = 8


def weighted_sums(q, k, terms, *, feature_map, interpret=False):
  """Returns sum_j phi(q_i) . phi(k_j) terms_j over j <= i, float32.

  Args:
    q: [batch, q_len, heads, dim].
    k: [batch, kv_len, heads, dim].
    terms: [batch, kv_len, heads, width]; zero rows for padding.
    feature_map: phi.
    interpret: whether Pallas's interpreter runs the kernel.
  """
  width = terms.shape[-1]
  # Rows of an odd width would be read element by element.
  terms = jnp.pad(terms, ((0, 0), (0, 0), (0, 0), (0, -width % ALIGNMENT)))
  options = (("full", q.dtype == jnp.float32), ("interpret", interpret))
  return _sums(options, feature_map, q, k, terms)[..., :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(options, phi, q, k, terms):
  maps = (phi, phi, features.identity)
  return _read(q, k, terms, maps, "before", jnp.float32, **dict(options))


def _forward(options, phi, q, k, terms):
  return _sums(options, phi, q, k, terms), (q, k, terms)


def _backward(options, phi, residuals, bar):
  q, k, terms = residuals
  same = features.identity
  # A key's gradient comes from the queries that see it, which are after it.
  read = functools.partial(_read, **dict(options))
  return (
    read(bar, terms, k, (same, same, phi), "before", q.dtype, pull=(phi, q)),
    read(terms, bar, q, (same, same, phi), "after", k.dtype, pull=(phi, k)),
    read(k, q, bar, (phi, phi, same), "after", terms.dtype),
  )


_sums.defvjp(_forward, _backward)


def _read(a, b, c, maps, order, dtype, pull=None, *, full, interpret):
  """Returns f(a_i) . sum_j g(b_j) h(c_j)^T, or its pullback through a map.

  Args:
    a: [batch, q_len, heads, width]; b, c: [batch, kv_len, heads, ...].
    maps: f, g and h, of which g or h is the identity.
    order: "before" (j <= i) or "after" (j >= i).
    dtype: of the result.
    pull: (phi, x [batch, q_len, heads, dim]): return the vector-Jacobian
      product of phi at x with the result instead.
    full: whether products are full float32.
    interpret: whether Pallas's interpreter runs the kernels.
  """
  batch, q_len, heads, _ = a.shape
  chunks = pl.cdiv(b.shape[1], CHUNK)
  widths = tuple(tiles.width(x) for x in (b, c))
  # A memory for each chunk, the one before it.
  memory = jax.ShapeDtypeStruct((batch, heads, chunks, *widths), jnp.float32)
  options = {"num_warps": 4, "num_stages": 2, "interpret": interpret}
  products = 2 * batch * heads * math.prod(widths)
  memory = triton.pallas_call(
    functools.partial(_sum_kernel, maps=maps[1:], order=order, full=full),
    name=f"linear_attention_memory_{order}",
    grid=(1, heads, batch),
    out_shape=memory,
    flops=products * chunks * CHUNK,
    bytes_accessed=triton.nbytes(b, c, memory),
    transcendentals=0,
    **options,
  )(b, c)
  own = (b, c)
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
  head, batch = pl.program_id(1), pl.program_id(2)
  chunks = pl.cdiv(b_ref.shape[1], CHUNK)

  # The memory is saved before the chunk is added: `_read_kernel` takes the own
  # chunk apart.
  def step(i, memory):
    chunk = i if order == "before" else chunks - 1 - i
    for index, x in _memory_tiles(memory_ref, batch, head, chunk, memory):
      triton.store(memory_ref, index, x)
    rows = tiles.rows_of(chunk)
    b, c = (
      tiles.load(ref, batch, rows, head, phi)
      for ref, phi in zip((b_ref, c_ref), maps, strict=True)
    )
    dot = functools.partial(triton.dot, transpose_a=True, full=full)
    return [
      [x + dot(left, right) for x, right in zip(line, c, strict=True)]
      for line, left in zip(memory, b, strict=True)
    ]

  memory = [
    [
      jnp.zeros((rows, columns), jnp.float32)
      for _, columns in tiles.pieces(c_ref)
    ]
    for _, rows in tiles.pieces(b_ref)
  ]
  lax.fori_loop(0, chunks, step, memory)


def _read_kernel(
  a_ref, own_refs, memory_ref, point_ref, out_ref, *, maps, order, full, pull
):
  """Reads f(a_i) . memory, adds the own chunk, and pulls back through a map."""
  chunk, head, batch = map(pl.program_id, range(3))
  f, g, h = maps
  rows = tiles.rows_of(chunk)
  dot = functools.partial(triton.dot, full=full)
  a = tiles.load(a_ref, batch, rows, head, f)
  # No tiles, only as many places: they are read one at a time.
  memory = [[None] * len(triton.pieces(memory_ref.shape[4]))] * len(a)
  out = [0.0] * len(memory[0])
  for i, (index, _) in enumerate(
    _memory_tiles(memory_ref, batch, head, chunk, memory)
  ):
    left, column = divmod(i, len(out))
    out[column] += dot(a[left], triton.load(memory_ref, index))
  b, c = (
    tiles.load(ref, batch, rows, head, phi)
    for ref, phi in zip(own_refs, (g, h), strict=True)
  )
  weights = sum(dot(x, y, transpose_b=True) for x, y in zip(a, b, strict=True))
  # Scores within the chunk, [CHUNK, CHUNK], which have an order.
  i, j = rows[:, None], rows[None, :]
  weights = jnp.where(j <= i if order == "before" else j >= i, weights, 0.0)
  out = [x + dot(weights, part) for x, part in zip(out, c, strict=True)]
  if pull is not None:
    points = tiles.load(point_ref, batch, rows, head, features.identity)
    out = [
      jax.vjp(pull, point)[1](x)[0]
      for x, point in zip(out, points, strict=True)
    ]
  tiles.store(out_ref, batch, rows, head, out)


def _memory_tiles(ref, batch, head, part, memory):
  """Yields where each tile of a memory lies, row by row, and the tile."""
  lines = zip(triton.pieces(ref.shape[3]), memory, strict=True)
  for (row, rows), line in lines:
    columns = zip(triton.pieces(ref.shape[4]), line, strict=True)
    for (column, width), x in columns:
      index = (
        batch,
        head,
        part,
        row + jnp.arange(rows)[:, None],
        column + jnp.arange(width)[None, :],
      )
      yield index, x
