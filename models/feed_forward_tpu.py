"""The feed-forward branch of a transformer layer on TPUs, as one kernel.

  out = x + factor * (gelu(norm(x) w1 + b1) w2 + b2)

for tiles of tokens, whose hidden channels never leave VMEM. The kernel of the
gradients computes them again, from `x` alone:

  g = factor * out_bar,  a_bar = g w2^T,  h_bar = a_bar gelu'(h)
  n_bar = h_bar w1^T,  x_bar = out_bar + norm'(x) n_bar
  w1_bar = n^T h_bar,  w2_bar = a^T g

with h the hidden channels before GELU and a behind it. Gradients of parameters
stay in VMEM, in float32, over all tiles.

Shapes in comments: T tokens of a tile, C channels, H hidden channels.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import tpu
from attention.kernels.tpu import LANES, Blocked

# The most VMEM of a kernel: parameters, their gradients and some tiles.
VMEM_BYTES = 64 * 2**20
# Tokens of a tile, at most: sums over them are products of 128 each.
_TOKENS = 1024
# Hidden channels of a turn of the loop, at most.
_CHUNK = 384
# gelu(h) = h (1 + tanh(h (_LINEAR + _CUBIC h^2))) / 2.
_LINEAR = math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


class Parameters(NamedTuple):
  """Of a branch: scale and bias of the norm [C], w1 [C, H], b1 [H], w2 [H, C],
  b2 [C]."""

  scale: Any
  bias: Any
  w1: Any
  b1: Any
  w2: Any
  b2: Any


class _Inputs(NamedTuple):
  """Tiles of tokens, and parameters, vectors with a row.

  Attributes:
    x, out_bar: [T, C].
    factor: [1, 1, T], None for ones.
  """

  x: Any
  factor: Any
  parameters: Parameters
  out_bar: Any = None


class _Output(NamedTuple):
  out: Any


class _Gradients(NamedTuple):
  """A tile, and sums that are the same at all steps; w2 is [C, H]."""

  x: Any
  parameters: Parameters


class _Scratch(NamedTuple):
  """What stays from step to step: weights in the dtype of the tokens.

  And what the loop over hidden channels reads and adds to: n, g, their
  transposes and the sum [T, C].
  """

  w1: Any
  w2: Any
  normed: Any
  total: Any
  g: Any = None
  normed_turned: Any = None
  g_turned: Any = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """Sizes of a call.

  Attributes:
    tokens: of all rows.
    channels: C.
    hidden: H.
    dtype: of tokens, by name.
    epsilon: of the norm.
    interpret: whether Pallas's interpreter runs the kernels.
  """

  tokens: int
  channels: int
  hidden: int
  dtype: str
  epsilon: float
  interpret: bool = False

  @property
  def tile(self) -> int:
    """Tokens of a tile, whose products over tokens are the fewest."""
    if self.tokens <= LANES:
      return self.tokens
    return min(
      range(_TOKENS, LANES - 1, -LANES),
      key=lambda tile: tpu.round_up(self.tokens, tile),
    )

  @property
  def chunk(self) -> int:
    """Hidden channels of a turn of the loop, whole registers of lanes."""
    fits = (
      size for size in range(_CHUNK, 0, -LANES) if self.hidden % size == 0
    )
    return next(fits, self.hidden)

  @property
  def ragged(self) -> bool:
    """Whether the last tile goes on beyond the tokens."""
    return self.tokens % self.tile > 0

  @property
  def precision(self) -> lax.Precision | None:
    return lax.Precision.HIGHEST if self.dtype == "float32" else None

  @property
  def vmem_bytes(self) -> int:
    """What the kernel of the gradients takes."""
    itemsize = jnp.dtype(self.dtype).itemsize
    channels = tpu.round_up(self.channels, LANES)
    hidden = tpu.round_up(self.hidden, LANES)
    weights = 2 * channels * hidden * (itemsize + 2 * 4)
    tiles = self.tile * channels * (10 * itemsize + 6 * 4)
    return weights + tiles + self.tile * self.chunk * 8 * 4

  def call(self, kernel, name, inputs, outputs, scratch, products):
    return tpu.call(
      functools.partial(kernel, self),
      name,
      grid=(pl.cdiv(self.tokens, self.tile),),
      inputs=inputs,
      outputs=outputs,
      scratch=scratch,
      parallel=0,
      vmem_bytes=max(16 * 2**20, self.vmem_bytes * 3 // 2),
      flops=2 * products * self.tokens * self.channels * self.hidden,
      transcendentals=self.tokens * self.hidden,
      interpret=self.interpret,
    )

  def tiles(self, x) -> Blocked:
    """Tokens [tokens, C], tile by tile."""
    block = (self.tile, self.channels)
    return Blocked(x, pl.BlockSpec(block, lambda i: (i, 0)))

  def factors(self, factor) -> Blocked | None:
    """Factors of the tokens [tokens], along lanes."""
    if factor is None:
      return None
    more = -self.tokens % self.tile
    rows = jnp.pad(factor.astype(jnp.float32), (0, more))
    rows = rows.reshape(-1, 1, self.tile)
    return Blocked(rows, pl.BlockSpec((1, 1, self.tile), lambda i: (i, 0, 0)))

  @property
  def weights(self) -> list[jax.ShapeDtypeStruct]:
    """Scratch of w1 and w2."""
    return [
      self.buffer(self.channels, self.hidden),
      self.buffer(self.hidden, self.channels),
    ]

  def buffer(self, *shape, dtype=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype or self.dtype)


def unsupported(x: jax.Array, w1: jax.Array, dtype: Any) -> str | None:
  """Says why the kernels cannot take these arguments, or returns None.

  Args:
    x: [..., C].
    w1: [C, H].
    dtype: that the layers compute in.
  """
  if x.dtype != dtype or x.dtype.name not in tpu.DTYPES:
    return (
      f"x is {x.dtype.name} and layers compute in {jnp.dtype(dtype).name}; the "
      f"kernel has one of {' and '.join(tpu.DTYPES)} for both"
    )
  if 0 in x.shape or 0 in w1.shape:
    return f"x has shape {x.shape}; the kernel needs at least one element"
  need = make_plan(x, w1, 0.0).vmem_bytes
  if need > VMEM_BYTES:
    return (
      f"x has shape {x.shape} and w1 {w1.shape}; the kernel needs {need:,} "
      f"bytes of VMEM, and may use {VMEM_BYTES:,}"
    )
  return None


def make_plan(
  x: jax.Array, w1: jax.Array, epsilon: float, *, interpret: bool = False
) -> Plan:
  """Returns the plan for tokens [..., C] and [C, H]."""
  tokens = math.prod(x.shape[:-1])
  return Plan(tokens, *w1.shape, x.dtype.name, epsilon, interpret)


def branch(
  x: jax.Array,
  factor: jax.Array | None,
  parameters: Parameters,
  *,
  epsilon: float,
  interpret: bool = False,
) -> jax.Array:
  """Returns x + factor * (gelu(norm(x) w1 + b1) w2 + b2).

  Args:
    x: [tokens, C].
    factor: [tokens], of what is dropped at random; it gets no gradient.
    parameters: of any float dtype; products are of that of `x`.
    epsilon: added to the variance.
    interpret: whether Pallas's interpreter runs the kernels.
  """
  plan = make_plan(x, parameters.w1, epsilon, interpret=interpret)
  return _branch(plan, x, factor, parameters)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _branch(plan, x, factor, parameters):
  return forward(plan, x, factor, parameters)


def _branch_forward(plan, x, factor, parameters):
  return forward(plan, x, factor, parameters), (x, factor, parameters)


def _branch_backward(plan, arrays, out_bar):
  x, factor, parameters = arrays
  x_bar, bars = backward(plan, x, factor, parameters, out_bar)
  bars = jax.tree.map(lambda bar, p: bar.astype(p.dtype), bars, parameters)
  return x_bar, jax.tree.map(jnp.zeros_like, factor), bars


_branch.defvjp(_branch_forward, _branch_backward)


def forward(plan: Plan, x, factor, parameters: Parameters):
  """Returns the output [tokens, C]."""
  return plan.call(
    _forward_kernel,
    "feed_forward",
    _Inputs(plan.tiles(x), plan.factors(factor), _whole(parameters)),
    _Output(plan.tiles(plan.buffer(plan.tokens, plan.channels))),
    _Scratch(
      *plan.weights,
      normed=plan.buffer(plan.tile, plan.channels),
      total=(plan.tile, plan.channels),
    ),
    products=2,
  ).out


def backward(plan: Plan, x, factor, parameters: Parameters, out_bar):
  """Returns the gradients of `x`, and of the parameters in float32."""
  channels, hidden = plan.channels, plan.hidden
  total = lambda *shape: tpu.whole(plan.buffer(*shape, dtype=jnp.float32))
  turned = plan.buffer(channels, plan.tile)
  tile = plan.buffer(plan.tile, channels)
  bars = plan.call(
    _backward_kernel,
    "feed_forward_backward",
    _Inputs(
      plan.tiles(x),
      plan.factors(factor),
      _whole(parameters),
      plan.tiles(out_bar),
    ),
    _Gradients(
      plan.tiles(plan.buffer(plan.tokens, channels)),
      Parameters(
        scale=total(1, channels),
        bias=total(1, channels),
        w1=total(channels, hidden),
        b1=total(1, hidden),
        w2=total(channels, hidden),
        b2=total(1, channels),
      ),
    ),
    _Scratch(*plan.weights, tile, (plan.tile, channels), tile, turned, turned),
    products=5,
  )
  found = bars.parameters
  return bars.x, Parameters(
    scale=found.scale[0],
    bias=found.bias[0],
    w1=found.w1,
    b1=found.b1[0],
    w2=found.w2.T,
    b2=found.b2[0],
  )


def _whole(parameters: Parameters) -> Parameters:
  return jax.tree.map(
    lambda x: tpu.whole(x[None] if x.ndim == 1 else x), parameters
  )


def _forward_kernel(plan, inputs, outputs, scratch):
  scale, bias, _, b1, _, b2 = inputs.parameters
  _keep_weights(plan, inputs, scratch)
  x = inputs.x[...].astype(jnp.float32)
  normed, _ = _normalize(plan, x)
  scratch.normed[...] = (normed * scale[...] + bias[...]).astype(plan.dtype)
  scratch.total[...] = jnp.broadcast_to(b2[...], x.shape)
  product = functools.partial(_product, plan)

  def turn(chunk):
    h = product(scratch.normed[...], scratch.w1[:, chunk]) + b1[:, chunk]
    a, _ = _gelu(h)
    scratch.total[...] += product(a.astype(plan.dtype), scratch.w2[chunk])

  _over_chunks(plan, turn)
  y = scratch.total[...]
  if inputs.factor is not None:
    y *= _column(inputs.factor)
  outputs.out[...] = (x + y).astype(plan.dtype)


def _backward_kernel(plan, inputs, outputs, scratch):
  scale, bias, _, b1, _, _ = inputs.parameters
  bars = outputs.parameters
  _keep_weights(plan, inputs, scratch)

  @pl.when(pl.program_id(0) == 0)
  def _():
    for total in bars:
      total[...] = jnp.zeros_like(total)

  x = inputs.x[...].astype(jnp.float32)
  out_bar = inputs.out_bar[...].astype(jnp.float32)
  if plan.ragged:
    # Beyond the tokens is anything, and sums go over it.
    left = plan.tokens - pl.program_id(0) * plan.tile
    there = lax.broadcasted_iota(jnp.int32, (plan.tile, 1), 0) < left
    x, out_bar = jnp.where(there, x, 0), jnp.where(there, out_bar, 0)
  normed, deviation = _normalize(plan, x)
  g = out_bar
  if inputs.factor is not None:
    g = g * _column(inputs.factor)
  bars.b2[...] += g.sum(0, keepdims=True)
  for value, straight, turned in (
    (normed * scale[...] + bias[...], scratch.normed, scratch.normed_turned),
    (g, scratch.g, scratch.g_turned),
  ):
    straight[...] = value.astype(plan.dtype)
    turned[...] = value.T.astype(plan.dtype)
  scratch.total[...] = jnp.zeros_like(x)
  product = functools.partial(_product, plan)

  def turn(chunk):
    w1 = scratch.w1[:, chunk]
    h = product(scratch.normed[...], w1) + b1[:, chunk]
    a, slope = _gelu(h)
    a_bar = product(scratch.g[...], scratch.w2[chunk], turned=True)
    h_bar = a_bar * slope
    bars.b1[:, chunk] += h_bar.sum(0, keepdims=True)
    a, h_bar = a.astype(plan.dtype), h_bar.astype(plan.dtype)
    bars.w2[:, chunk] += product(scratch.g_turned[...], a)
    bars.w1[:, chunk] += product(scratch.normed_turned[...], h_bar)
    scratch.total[...] += product(h_bar, w1, turned=True)

  _over_chunks(plan, turn)
  bar = scratch.total[...]
  bars.bias[...] += bar.sum(0, keepdims=True)
  bars.scale[...] += (bar * normed).sum(0, keepdims=True)
  bar *= scale[...]
  mean, along = _mean(plan, bar), _mean(plan, bar * normed)
  x_bar = (bar - mean - normed * along) * deviation
  outputs.x[...] = (out_bar + x_bar).astype(plan.dtype)


def _keep_weights(plan, inputs, scratch):
  @pl.when(pl.program_id(0) == 0)
  def _():
    scratch.w1[...] = inputs.parameters.w1[...].astype(plan.dtype)
    scratch.w2[...] = inputs.parameters.w2[...].astype(plan.dtype)


def _normalize(plan, x):
  """Tokens of mean 0 and variance 1, and by what they were multiplied."""
  x = x - _mean(plan, x)
  deviation = lax.rsqrt(_mean(plan, x * x) + plan.epsilon)
  return x * deviation, deviation


def _mean(plan, x):
  """Means over channels [T, C], by the matrix unit: lanes are dear to add."""
  channels = x.shape[1]
  ones = jnp.ones((channels, LANES), plan.dtype)
  means = _product(plan, x.astype(plan.dtype), ones) * (1 / channels)
  return jnp.concatenate([means] * pl.cdiv(channels, LANES), 1)[:, :channels]


def _gelu(h):
  """GELU by tanh, and its slope."""
  square = h * h
  # (1 + tanh) / 2.
  share = 0.5 + 0.5 * jnp.tanh(h * (_LINEAR + _CUBIC * square))
  bend = (share - share * share) * (2 * _LINEAR + 6 * _CUBIC * square)
  return h * share, share + h * bend


def _column(factor):
  """[1, 1, T] as [T, 1]."""
  row = factor[0]
  return jnp.broadcast_to(row, (tpu.SUBLANES, row.shape[1])).T[:, :1]


def _product(plan, x, y, *, turned=False):
  """x y, or x y^T, in float32."""
  return lax.dot_general(
    x,
    y,
    (((1,), (1 if turned else 0,)), ((), ())),
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def _over_chunks(plan, turn):
  """Runs `turn` for some hidden channels after others."""

  def at(i, nothing):
    turn(pl.ds(pl.multiple_of(i * plan.chunk, plan.chunk), plan.chunk))
    return nothing

  turns = plan.hidden // plan.chunk
  if turns == 1:
    turn(slice(None))
  else:
    lax.fori_loop(0, turns, at, None)
