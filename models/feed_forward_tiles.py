"""A tile of tokens in the kernels of `feed_forward_tpu`.

Shapes in comments: T tokens of a tile, C channels, H hidden channels.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import tpu
from attention.kernels.tpu import LANES

# gelu(h) = h (1 + tanh(h (_LINEAR + _CUBIC h^2))) / 2, by tanh.
_LINEAR = math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


class Parameters(NamedTuple):
  """Of a branch: w1 [C, H], b1 [H], w2 [H, C], b2 [C].

  Scale and bias [C] of the norm before them, None if that has none, and of the
  norm behind them, None if there is no such norm. Of what modulates tokens the
  bias [3 C]: a sum over tokens, its gradient, takes XLA a pass of its own.
  """

  scale: Any
  bias: Any
  w1: Any
  b1: Any
  w2: Any
  b2: Any
  out_scale: Any = None
  out_bias: Any = None
  modulation_bias: Any = None


class Inputs(NamedTuple):
  """Tiles of tokens, and parameters, vectors with a row.

  Attributes:
    x, product, out_bar: [T, C].
    factor: [1, 1, T], None for ones.
    modulation: [T, 3 C], None for none.
    hidden: [T, H].
  """

  x: Any
  factor: Any
  modulation: Any
  parameters: Parameters
  hidden: Any = None
  product: Any = None
  out_bar: Any = None


class Outputs(NamedTuple):
  """The result [T, C]; h [T, H] and the product with w2 [T, C], if kept."""

  out: Any
  hidden: Any = None
  product: Any = None


class Gradients(NamedTuple):
  """A tile, and sums that are the same at all steps; w2 is [C, H]."""

  x: Any
  modulation: Any
  parameters: Parameters


class Scratch(NamedTuple):
  """What stays from step to step: weights in the dtype of the tokens.

  And what the loop over hidden channels reads and adds to: what w1 is
  multiplied with, g, their transposes and the sum [T, C].
  """

  w1: Any
  w2: Any
  read: Any
  total: Any
  g: Any = None
  read_turned: Any = None
  g_turned: Any = None


def forward(plan, inputs, outputs, scratch):
  """The kernel of a branch."""
  parameters = inputs.parameters
  _keep_weights(plan, inputs, scratch)
  x = inputs.x[...].astype(jnp.float32)
  read, _, _ = _read(plan, inputs, x, None)
  scratch.read[...] = read.astype(plan.dtype)
  scratch.total[...] = jnp.broadcast_to(parameters.b2[...], x.shape)
  product = functools.partial(_product, plan)
  activation = ACTIVATIONS[plan.form.activation]

  def turn(chunk):
    h = product(scratch.read[...], scratch.w1[:, chunk])
    h += parameters.b1[:, chunk]
    if outputs.hidden is not None:
      outputs.hidden[:, chunk] = h.astype(plan.dtype)
    a, _ = activation(h)
    scratch.total[...] += product(a.astype(plan.dtype), scratch.w2[chunk])

  _over_chunks(plan, turn)
  y = scratch.total[...]
  if outputs.product is not None:
    outputs.product[...] = y.astype(plan.dtype)
  if parameters.out_scale is not None:
    y, _ = _normalize(plan, y, plan.form.out_epsilon)
    y = y * parameters.out_scale[...] + parameters.out_bias[...]
  if inputs.modulation is not None:
    y *= _modulation(plan, inputs, 2, None)
  if inputs.factor is not None:
    y *= _column(inputs.factor)
  outputs.out[...] = (x + y).astype(plan.dtype)


def backward(plan, inputs, outputs, scratch):
  """The kernel of all gradients."""
  parameters, bars = inputs.parameters, outputs.parameters
  _keep_weights(plan, inputs, scratch)

  @pl.when(pl.program_id(0) == 0)
  def _():
    for total in jax.tree.leaves(bars):
      total[...] = jnp.zeros_like(total)

  # Here, as the interpreter has no place in the grid within a loop.
  there = _there(plan)
  x = _tokens(inputs.x, there)
  read, normed, deviation = _read(plan, inputs, x, there)
  g = _through_out(plan, inputs, outputs, there)
  bars.b2[...] += g.sum(0, keepdims=True)
  for value, straight, turned in (
    (read, scratch.read, scratch.read_turned),
    (g, scratch.g, scratch.g_turned),
  ):
    straight[...] = value.astype(plan.dtype)
    turned[...] = value.T.astype(plan.dtype)
  scratch.total[...] = jnp.zeros_like(x)
  product = functools.partial(_product, plan)
  activation = ACTIVATIONS[plan.form.activation]

  def turn(chunk):
    w1 = scratch.w1[:, chunk]
    if inputs.hidden is None:
      h = product(scratch.read[...], w1) + parameters.b1[:, chunk]
    else:
      h = _tokens(inputs.hidden, there, chunk)
    a, slope = activation(h)
    a_bar = product(scratch.g[...], scratch.w2[chunk], turned=True)
    h_bar = a_bar * slope
    bars.b1[:, chunk] += h_bar.sum(0, keepdims=True)
    a, h_bar = a.astype(plan.dtype), h_bar.astype(plan.dtype)
    bars.w2[:, chunk] += product(scratch.g_turned[...], a)
    bars.w1[:, chunk] += product(scratch.read_turned[...], h_bar)
    scratch.total[...] += product(h_bar, w1, turned=True)

  _over_chunks(plan, turn)
  bar = scratch.total[...]
  if parameters.scale is not None:
    bars.bias[...] += bar.sum(0, keepdims=True)
    bars.scale[...] += (bar * normed).sum(0, keepdims=True)
    bar *= parameters.scale[...]
  elif plan.modulated:
    _put(outputs, 0, bar * normed)
    _put(outputs, 1, bar)
    bar *= 1 + _modulation(plan, inputs, 0, there)
  if normed is not None:
    bar = _through_norm(plan, bar, normed, deviation)
  out_bar = _tokens(inputs.out_bar, there)
  outputs.x[...] = (out_bar + bar).astype(plan.dtype)


def _read(plan, inputs, x, there):
  """What w1 is multiplied with, `x` normalised, and by what it was multiplied.

  The last two are None without a norm.
  """
  scale, bias, *_ = inputs.parameters
  if scale is None and inputs.modulation is None:
    return x, None, None
  normed, deviation = _normalize(plan, x, plan.form.epsilon)
  if scale is not None:
    return normed * scale[...] + bias[...], normed, deviation
  scale, shift = (_modulation(plan, inputs, n, there) for n in range(2))
  return normed * (1 + scale) + shift, normed, deviation


def _through_out(plan, inputs, outputs, there):
  """The gradient g of the product with w2; adds those of what is behind it."""
  parameters, bars = inputs.parameters, outputs.parameters
  g = _tokens(inputs.out_bar, there)
  if inputs.factor is not None:
    g = g * _column(inputs.factor)
  if not plan.keeps:
    return g
  made = _tokens(inputs.product, there)
  normed, deviation = _normalize(plan, made, plan.form.out_epsilon)
  if plan.modulated:
    made = normed * parameters.out_scale[...] + parameters.out_bias[...]
    _put(outputs, 2, g * made)
    g *= _modulation(plan, inputs, 2, there)
  bars.out_bias[...] += g.sum(0, keepdims=True)
  bars.out_scale[...] += (g * normed).sum(0, keepdims=True)
  return _through_norm(plan, g * parameters.out_scale[...], normed, deviation)


def _there(plan):
  """Which rows of a tile are tokens [T, 1], None if all are."""
  if not plan.ragged:
    return None
  left = plan.tokens - pl.program_id(0) * plan.tile
  return lax.broadcasted_iota(jnp.int32, (plan.tile, 1), 0) < left


def _tokens(reference, there, columns=slice(None)):
  """Numbers of tokens in float32; zeros beyond the last one.

  There is anything there, and sums go over it.
  """
  x = reference[:, columns].astype(jnp.float32)
  return x if there is None else jnp.where(there, x, 0)


def _modulation(plan, inputs, n, there):
  """The scale of tokens, what shifts them or their gate, [T, C]."""
  at = slice(n * plan.channels, (n + 1) * plan.channels)
  bias = inputs.parameters.modulation_bias[:, at]
  return _tokens(inputs.modulation, there, at) + bias


def _put(outputs, n, bar):
  """Writes the gradient of `_modulation`."""
  channels = bar.shape[1]
  at = slice(n * channels, (n + 1) * channels)
  outputs.modulation[:, at] = bar.astype(outputs.modulation.dtype)
  outputs.parameters.modulation_bias[:, at] += bar.sum(0, keepdims=True)


def _keep_weights(plan, inputs, scratch):
  @pl.when(pl.program_id(0) == 0)
  def _():
    scratch.w1[...] = inputs.parameters.w1[...].astype(plan.dtype)
    scratch.w2[...] = inputs.parameters.w2[...].astype(plan.dtype)


def _normalize(plan, x, epsilon):
  """Tokens of mean 0 and variance 1, and by what they were multiplied."""
  x = x - _mean(plan, x)
  deviation = lax.rsqrt(_mean(plan, x * x) + epsilon)
  return x * deviation, deviation


def _through_norm(plan, bar, normed, deviation):
  """The gradient of `x` from that of `normed`; see `_normalize`."""
  mean, along = _mean(plan, bar), _mean(plan, bar * normed)
  return (bar - mean - normed * along) * deviation


def _mean(plan, x):
  """Means over channels [T, C], by the matrix unit: lanes are dear to add."""
  channels = x.shape[1]
  sums = x
  if channels % LANES == 0:
    # Registers are not.
    sums = sum(x[:, i : i + LANES] for i in range(0, channels, LANES))
  ones = jnp.ones((sums.shape[1], LANES), plan.dtype)
  means = _product(plan, sums.astype(plan.dtype), ones) * (1 / channels)
  return jnp.concatenate([means] * pl.cdiv(channels, LANES), 1)[:, :channels]


def _gelu_tanh(h):
  """GELU by tanh, and its slope."""
  square = h * h
  # (1 + tanh) / 2.
  share = 0.5 + 0.5 * jnp.tanh(h * (_LINEAR + _CUBIC * square))
  bend = (share - share * share) * (2 * _LINEAR + 6 * _CUBIC * square)
  return h * share, share + h * bend


def _gelu(h):
  """GELU, and its slope."""
  share = 0.5 + 0.5 * lax.erf(h * math.sqrt(0.5))
  density = jnp.exp(-0.5 * h * h) * (1 / math.sqrt(2 * math.pi))
  return h * share, share + h * density


def _silu(h):
  """h sigmoid(h), and its slope."""
  share = 0.5 + 0.5 * jnp.tanh(0.5 * h)
  return h * share, share * (1 + h * (1 - share))


ACTIVATIONS = {"gelu_tanh": _gelu_tanh, "gelu": _gelu, "silu": _silu}


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
