"""Linear attention among all tokens on NVIDIA GPUs: a memory made, then read.

Two kernels, each with its gradient. Keys, values, gates and queries are read
where they lie, and the normalised output is written, all once. A head at a time
would leave most of a GPU idle; so several programs share the tokens of a head,
each with a memory of its own, to be summed.

A memory is [features, channels of values] in whole tiles, and beside it, in a
tile of SIDE columns, the sum of the features; where the normalizer reads the
mean of values, their sum is a row below.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention import linear_normalizers
from attention.kernels import linear_gpu_tiles as tiles
from attention.kernels import triton
from attention.kernels.linear_gpu_tiles import CHUNK

# Programs that share the tokens of a call: two for each multiprocessor of an
# H100. More would write more memories.
PROGRAMS = 264
# Tokens that a memory takes in at once: with CHUNK of them, a program would have
# more numbers at hand than registers.
TAKEN = 32
# Columns beside the memory: rows of it then begin where 16 bytes do.
SIDE = 16


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known before the call.

  Attributes:
    feature_map: phi.
    normalizer: what becomes of the sums.
    full: whether products are full float32.
    interpret: whether Pallas's interpreter runs the kernels.
  """

  feature_map: Callable
  normalizer: linear_normalizers.LinearNormalizer
  full: bool
  interpret: bool

  @property
  def means(self) -> bool:
    """Whether the normalizer reads the mean of values."""
    return isinstance(self.normalizer, linear_normalizers.Subtraction)

  def dot(self, a, b, **transposed):
    return triton.dot(a, b, full=self.full, **transposed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def make(plan: Plan, k, v, key_gate, value_gate, lengths) -> jax.Array:
  """Returns the memory of all keys, float32 [batch, heads, rows, columns].

  Args:
    plan: the plan.
    k: [batch, tokens, heads, dim].
    v: [batch, tokens, heads, v_dim].
    key_gate: [batch or 1, tokens, heads or 1], or None.
    value_gate: likewise.
    lengths: int32 [batch], how many tokens are no padding, or None.
  """
  batch, length, heads, _ = k.shape
  parts = _parts(batch * heads, length)
  memory = _memory(plan, k, v, parts)
  return _call(
    plan,
    _make_kernel,
    "linear_attention_make",
    grid=(parts, heads, batch),
    out_shape=memory,
    products=length * batch * heads * memory.shape[3] * memory.shape[4],
  )(k, v, key_gate, value_gate, lengths).sum(2)


def _make_kernel(
  k_ref, v_ref, key_gate_ref, value_gate_ref, lengths_ref, memory_ref, *, plan
):
  part, head, batch = map(pl.program_id, range(3))
  limit = _limit(k_ref, lengths_ref, batch, TAKEN)

  def add(chunk, sums):
    memory, weights, totals = sums
    rows = tiles.rows_of(chunk, TAKEN)
    kept = _kept(rows, limit)
    keys = tiles.load(k_ref, batch, rows, head, plan.feature_map, kept)
    values = tiles.load(v_ref, batch, rows, head, _same, kept)
    keys = _gated(keys, _gate(key_gate_ref, batch, rows, head, kept))
    values = _gated(values, _gate(value_gate_ref, batch, rows, head, kept))
    if plan.means:
      totals = _summed(totals, values)
    return _added(plan, memory, keys, values), _summed(weights, keys), totals

  start, stop = _chunks(part, k_ref, memory_ref, limit)
  sums = lax.fori_loop(start, stop, add, _nothing(plan, k_ref, v_ref))
  _save(plan, memory_ref, (batch, head, part), k_ref, v_ref, *sums)


def _make_forward(plan, *arrays):
  return make(plan, *arrays), arrays


def _make_backward(plan, arrays, bar):
  k, v, key_gate, value_gate, lengths = arrays
  batch, length, heads, _ = k.shape
  gate_bar = jax.ShapeDtypeStruct((batch, length, heads), jnp.float32)
  shapes = (
    jax.ShapeDtypeStruct(k.shape, k.dtype),
    jax.ShapeDtypeStruct(v.shape, v.dtype),
    None if key_gate is None else gate_bar,
    None if value_gate is None else gate_bar,
  )
  k_bar, v_bar, *gate_bars = _call(
    plan,
    _make_backward_kernel,
    "linear_attention_make_backward",
    grid=(pl.cdiv(length, CHUNK), heads, batch),
    out_shape=shapes,
    products=2 * length * batch * heads * bar.shape[2] * bar.shape[3],
  )(k, v, key_gate, value_gate, lengths, bar)
  gates = zip(gate_bars, (key_gate, value_gate), strict=True)
  return k_bar, v_bar, *(_gate_gradient(*pair) for pair in gates), None


def _make_backward_kernel(
  k_ref,
  v_ref,
  key_gate_ref,
  value_gate_ref,
  lengths_ref,
  bar_ref,
  k_bar_ref,
  v_bar_ref,
  key_gate_bar_ref,
  value_gate_bar_ref,
  *,
  plan,
):
  chunk, head, batch = map(pl.program_id, range(3))
  rows = tiles.rows_of(chunk)
  kept = _kept(rows, _limit(k_ref, lengths_ref, batch, CHUNK))
  keys, pulls = _mapped(plan, k_ref, batch, rows, head, kept)
  values = tiles.load(v_ref, batch, rows, head, _same, kept)
  key_gate = _gate(key_gate_ref, batch, rows, head, kept)
  value_gate = _gate(value_gate_ref, batch, rows, head, kept)
  at = batch, head
  # To the features and values that the memory takes in, gates included.
  keys_bar = [_weights(bar_ref, at, i)[None, :] for i in tiles.pieces(k_ref)]
  values_bar = [_totals(plan, bar_ref, at, j) for j in tiles.pieces(v_ref)]
  gated_keys, gated_values = _gated(keys, key_gate), _gated(values, value_gate)
  for i, row in enumerate(tiles.pieces(k_ref)):
    for j, column in enumerate(tiles.pieces(v_ref)):
      tile = triton.load(bar_ref, _tile(at, row, column))
      keys_bar[i] += plan.dot(gated_values[j], tile, transpose_b=True)
      values_bar[j] += plan.dot(gated_keys[i], tile)
  gates = (
    (key_gate_bar_ref, keys_bar, keys),
    (value_gate_bar_ref, values_bar, values),
  )
  for ref, bars, ungated in gates:
    if ref is None:
      continue
    products = zip(bars, ungated, strict=True)
    bar = sum((x * y).sum(1, keepdims=True) for x, y in products)
    index, tails = _gate_index(ref, batch, rows, head)
    triton.store(ref, index, bar, tails=tails)
  keys_bar = _gated(keys_bar, key_gate)
  keys_bar = [pull(x)[0] for pull, x in zip(pulls, keys_bar, strict=True)]
  values_bar = [tiles.only(x, kept) for x in _gated(values_bar, value_gate)]
  tiles.store(k_bar_ref, batch, rows, head, keys_bar)
  tiles.store(v_bar_ref, batch, rows, head, values_bar)


make.defvjp(_make_forward, _make_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def read(plan: Plan, keys: tuple[int, int], q, memory, lengths) -> jax.Array:
  """Returns what queries read of a memory, normalised, like `q`.

  Args:
    plan: the plan.
    keys: number of keys, and channels of their values.
    q: [batch, tokens, heads, dim].
    memory: what `make` returned.
    lengths: as there.

  Returns:
    [batch, tokens, heads, v_dim].
  """
  batch, length, heads, _ = q.shape
  out = jax.ShapeDtypeStruct((batch, length, heads, keys[1]), q.dtype)
  return _call(
    plan,
    functools.partial(_read_kernel, kv_len=keys[0]),
    "linear_attention_read",
    grid=(pl.cdiv(length, CHUNK), heads, batch),
    out_shape=out,
    products=length * batch * heads * memory.shape[2] * memory.shape[3],
    num_warps=4,
  )(q, memory, lengths)


def _read_kernel(q_ref, memory_ref, lengths_ref, out_ref, *, plan, kv_len):
  chunk, head, batch = map(pl.program_id, range(3))
  rows = tiles.rows_of(chunk)
  queries = tiles.load(q_ref, batch, rows, head, plan.feature_map)
  at = batch, head
  sums, weight = _answers(plan, queries, memory_ref, at, q_ref, out_ref)
  count = _count(lengths_ref, batch, kv_len)
  normalize = _normalize(plan, count, q_ref.shape[3])
  out = []
  for x, column in zip(sums, tiles.pieces(out_ref), strict=True):
    total = _totals(plan, memory_ref, at, column)
    out.append(normalize(x, weight, total))
  tiles.store(out_ref, batch, rows, head, out)


def _read_forward(plan, keys, *arrays):
  return read(plan, keys, *arrays), arrays


def _read_backward(plan, keys, arrays, bar):
  q, memory, lengths = arrays
  batch, length, heads, _ = q.shape
  products = length * batch * heads * memory.shape[2] * memory.shape[3]
  q_bar, weight_bar = _call(
    plan,
    functools.partial(_queries_kernel, kv_len=keys[0]),
    "linear_attention_read_backward_queries",
    grid=(pl.cdiv(length, CHUNK), heads, batch),
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((batch, length, heads), jnp.float32),
    ),
    products=2 * products,
  )(q, memory, lengths, bar)
  parts = _parts(batch * heads, length)
  shape = (batch, heads, parts, *memory.shape[2:])
  memory_bar = _call(
    plan,
    functools.partial(_memory_kernel, kv_len=keys[0]),
    "linear_attention_read_backward_memory",
    grid=(parts, heads, batch),
    out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
    products=products,
  )(q, memory, lengths, bar, weight_bar)
  return q_bar, memory_bar.sum(2), None


def _queries_kernel(
  q_ref,
  memory_ref,
  lengths_ref,
  bar_ref,
  q_bar_ref,
  weight_bar_ref,
  *,
  plan,
  kv_len,
):
  chunk, head, batch = map(pl.program_id, range(3))
  at = batch, head
  count = _count(lengths_ref, batch, kv_len)
  normalize = _normalize(plan, count, q_ref.shape[3])
  rows = tiles.rows_of(chunk)
  queries, pulls = _mapped(plan, q_ref, batch, rows, head, None)
  bars = tiles.load(bar_ref, batch, rows, head, _same)
  sums, weight = _answers(plan, queries, memory_ref, at, q_ref, bar_ref)
  weight_bar = jnp.zeros_like(weight)
  read_bars = []
  for j, column in enumerate(tiles.pieces(bar_ref)):
    total = _totals(plan, memory_ref, at, column)
    _, pull = jax.vjp(normalize, sums[j], weight, total)
    sums_bar, more, _ = pull(bars[j])
    weight_bar += more
    read_bars.append(sums_bar)
  queries_bar = []
  for pull, row in zip(pulls, tiles.pieces(q_ref), strict=True):
    x = weight_bar * _weights(memory_ref, at, row)[None, :]
    for read_bar, column in zip(read_bars, tiles.pieces(bar_ref), strict=True):
      tile = triton.load(memory_ref, _tile(at, row, column))
      x += plan.dot(read_bar, tile, transpose_b=True)
    queries_bar.append(pull(x)[0])
  tiles.store(q_bar_ref, batch, rows, head, queries_bar)
  index, tails = _gate_index(weight_bar_ref, batch, rows, head)
  triton.store(weight_bar_ref, index, weight_bar, tails=tails)


def _memory_kernel(
  q_ref,
  memory_ref,
  lengths_ref,
  bar_ref,
  weight_bar_ref,
  memory_bar_ref,
  *,
  plan,
  kv_len,
):
  part, head, batch = map(pl.program_id, range(3))
  at = batch, head
  count = _count(lengths_ref, batch, kv_len)
  normalize = _normalize(plan, count, q_ref.shape[3])
  limit = _limit(q_ref, None, batch, TAKEN)

  def add(chunk, sums):
    memory_bar, weights_bar, totals_bar = sums
    rows = tiles.rows_of(chunk, TAKEN)
    kept = _kept(rows, limit)
    queries = tiles.load(q_ref, batch, rows, head, plan.feature_map, kept)
    bars = tiles.load(bar_ref, batch, rows, head, _same, kept)
    weight = _weight(queries, memory_ref, at, q_ref)
    read_bars = []
    for j, column in enumerate(tiles.pieces(bar_ref)):
      total = _totals(plan, memory_ref, at, column)
      # The output is linear in the sums: the gradient to them needs them not.
      none = jnp.zeros_like(bars[j])
      _, pull = jax.vjp(normalize, none, weight, total)
      sums_bar, _, total_bar = pull(bars[j])
      # Where there is no query, there may be no number either.
      read_bars.append(tiles.only(sums_bar, kept))
      if plan.means:
        totals_bar[j] += total_bar[0]
    memory_bar = _added(plan, memory_bar, queries, read_bars)
    weight_bar = _gate(weight_bar_ref, batch, rows, head, kept)
    weights_bar = _summed(weights_bar, _gated(queries, weight_bar))
    return memory_bar, weights_bar, totals_bar

  start, stop = _chunks(part, q_ref, memory_bar_ref, limit)
  sums = lax.fori_loop(start, stop, add, _nothing(plan, q_ref, bar_ref))
  _save(plan, memory_bar_ref, (batch, head, part), q_ref, bar_ref, *sums)


read.defvjp(_read_forward, _read_backward)


def _call(
  plan, kernel, name, *, grid, out_shape, products, num_warps=8
) -> Callable:
  """Returns the function of arrays that runs `kernel` on a grid.

  With eight warps a memory of 96 x 96 is a quarter of a thread's registers;
  with four the compiler put some of it into memory.
  """

  def call(*arrays):
    return triton.pallas_call(
      functools.partial(kernel, plan=plan),
      name=name,
      grid=grid,
      out_shape=out_shape,
      flops=2 * products,
      bytes_accessed=triton.nbytes(arrays, out_shape),
      transcendentals=0,
      num_warps=num_warps,
      num_stages=2,
      interpret=plan.interpret,
    )(*arrays)

  return call


def _parts(heads: int, length: int) -> int:
  """Returns how many programs share the tokens of one of `heads` heads."""
  chunks = pl.cdiv(length, TAKEN)
  parts = min(chunks, max(1, PROGRAMS // heads))
  # None without a chunk.
  return pl.cdiv(chunks, pl.cdiv(chunks, parts))


def _chunks(part, ref, memory_ref, limit):
  """Returns the first chunk of a program's share, and the one behind it."""
  chunks = pl.cdiv(ref.shape[1], TAKEN)
  size = pl.cdiv(chunks, memory_ref.shape[2])
  start = part * size
  stop = jnp.minimum(start + size, chunks)
  if limit is not None:
    stop = jnp.minimum(stop, lax.div(limit + (TAKEN - 1), TAKEN))
  return start, stop


def _memory(plan, k, v, parts) -> jax.ShapeDtypeStruct:
  batch, _, heads, _ = k.shape
  sides = tiles.width(k) + plan.means, tiles.width(v) + SIDE
  return jax.ShapeDtypeStruct((batch, heads, parts, *sides), jnp.float32)


def _nothing(plan, k_ref, v_ref):
  """Returns a memory of no keys: tiles by row, sums of features and values."""
  rows, columns = (
    [size for _, size in tiles.pieces(ref)] for ref in (k_ref, v_ref)
  )

  def zeros(*shape):
    return jnp.zeros(shape, jnp.float32)

  return (
    [[zeros(row, column) for column in columns] for row in rows],
    [zeros(row) for row in rows],
    [zeros(column) for column in columns if plan.means],
  )


def _added(plan, memory, keys, values):
  return [
    [
      x + plan.dot(key, value, transpose_a=True)
      for x, value in zip(line, values, strict=True)
    ]
    for line, key in zip(memory, keys, strict=True)
  ]


def _summed(sums, parts):
  """Adds the sum over tokens of each piece [rows, size] to what is there."""
  return [x + part.sum(0) for x, part in zip(sums, parts, strict=True)]


def _save(plan, ref, at, k_ref, v_ref, memory, weights, totals):
  """Writes a memory as it was described above."""
  rows, columns = tiles.pieces(k_ref), tiles.pieces(v_ref)
  side = ref.shape[-1] - SIDE, SIDE
  first = jnp.arange(SIDE)[None, :] == 0
  for row, line, weight in zip(rows, memory, weights, strict=True):
    for column, x in zip(columns, line, strict=True):
      triton.store(ref, _tile(at, row, column), x)
    x = jnp.where(first, weight[:, None], 0.0)
    triton.store(ref, _tile(at, row, side), x)
  if plan.means:
    zeros = jnp.zeros((SIDE,), jnp.float32)
    last = ref.shape[-2] - 1
    for (start, size), x in zip(
      [*columns, side], [*totals, zeros], strict=True
    ):
      triton.store(ref, (*at, last, start + jnp.arange(size)), x)


def _tile(at, row, column):
  """Returns the index of a tile of a memory."""
  return (
    *at,
    row[0] + jnp.arange(row[1])[:, None],
    column[0] + jnp.arange(column[1])[None, :],
  )


def _weights(ref, at, row):
  """Returns the sum of features [size] of a piece."""
  index = row[0] + jnp.arange(row[1])
  return triton.load(ref, (*at, index, ref.shape[-1] - SIDE))


def _totals(plan, ref, at, column):
  """Returns the sum of values [1, size] of a piece, zero where none is kept."""
  if not plan.means:
    return jnp.zeros((1, column[1]), jnp.float32)
  index = column[0] + jnp.arange(column[1])
  return triton.load(ref, (*at, ref.shape[-2] - 1, index))[None, :]


def _answers(plan, queries, memory_ref, at, q_ref, out_ref):
  """Returns sums of values in pieces, and of weights [rows, 1]."""
  sums = [
    sum(
      plan.dot(query, triton.load(memory_ref, _tile(at, row, column)))
      for query, row in zip(queries, tiles.pieces(q_ref), strict=True)
    )
    for column in tiles.pieces(out_ref)
  ]
  return sums, _weight(queries, memory_ref, at, q_ref)


def _weight(queries, memory_ref, at, q_ref):
  return sum(
    (query * _weights(memory_ref, at, row)[None, :]).sum(1, keepdims=True)
    for query, row in zip(queries, tiles.pieces(q_ref), strict=True)
  )


def _normalize(plan, count, dim) -> Callable:
  """Returns the function of sums, weight and total that gives the output."""
  least = jnp.maximum(count, 1.0)

  def function(sums, weight, total):
    weight = jnp.where(count == 0, 1.0, weight)
    mean = functools.partial(jnp.divide, total, least)
    return plan.normalizer.normalize(sums, weight, least, mean, dim)

  return function


def _count(lengths_ref, batch, kv_len):
  """Returns the number of keys, float32."""
  count = kv_len if lengths_ref is None else triton.load(lengths_ref, (batch,))
  return jnp.asarray(count).astype(jnp.float32)


def _limit(ref, lengths_ref, batch, chunk):
  """Returns how many tokens count, None if all do of each chunk."""
  if lengths_ref is not None:
    return triton.load(lengths_ref, (batch,))
  length = ref.shape[1]
  return jnp.asarray(length, jnp.int32) if length % chunk else None


def _kept(rows, limit):
  return None if limit is None else (rows < limit)[:, None]


def _mapped(plan, ref, batch, rows, head, kept):
  """Returns features of tokens in pieces, and their pullbacks."""
  pairs = [
    jax.vjp(
      lambda x, mask=mask: tiles.features_of(x, plan.feature_map, mask, kept), x
    )
    for x, mask in tiles.load_raw(ref, batch, rows, head)
  ]
  return [x for x, _ in pairs], [pull for _, pull in pairs]


def _same(x):
  return x


def _gate(ref, batch, rows, head, kept):
  """Returns the gate of some tokens [rows, 1], None for one."""
  if ref is None:
    return None
  index, tails = _gate_index(ref, batch, rows, head)
  gate = triton.load(ref, index, tails=tails).astype(jnp.float32)
  return tiles.only(gate, kept)


def _gate_index(ref, batch, rows, head):
  index = (
    batch if ref.shape[0] > 1 else 0,
    rows[:, None],
    head if ref.shape[2] > 1 else 0,
  )
  return index, triton.tail(1, ref.shape[1], rows.size)


def _gated(parts, gate):
  return parts if gate is None else [x * gate for x in parts]


def _gate_gradient(bar, gate):
  """Returns the gradient to a gate of that to each token and head."""
  if gate is None:
    return None
  axes = tuple(i for i in range(3) if gate.shape[i] < bar.shape[i])
  return bar.sum(axes, keepdims=True).astype(gate.dtype)
