"""The feed-forward branch of a transformer layer on TPUs, as one kernel.

  out = x + factor * gate * norm'(act(norm(x) w1 + b1) w2 + b2)

for tiles of tokens, whose hidden channels are in VMEM only. Either norm may be
none; `gate` and what scales and shifts the first may be of each token, as in
adaptive norms. The kernel of the gradients computes hidden channels again, from
`x` alone,

  g = factor * out_bar,  a_bar = g w2^T,  h_bar = a_bar act'(h)
  n_bar = h_bar w1^T,  x_bar = out_bar + (norm)'(x) n_bar
  w1_bar = n^T h_bar,  w2_bar = a^T g

with h the hidden channels before the activation and a behind it. With a second
norm gradients need the product with w2 first, so there it and h are written by
the forward pass, which takes less time than to compute them twice.
Gradients of parameters stay in VMEM, in float32, over all tiles.
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
from models import feed_forward_tiles
from models.feed_forward_tiles import (
  Gradients,
  Inputs,
  Outputs,
  Parameters,
  Scratch,
)

# The most VMEM of a kernel: parameters, their gradients and some tiles.
VMEM_BYTES = 80 * 2**20
# Tokens of a tile, at most: sums over them are products of 128 each.
_TOKENS = 1024
# Rows of a register of 16-bit numbers.
_ROWS = 16
# Hidden channels of a turn of the loop, at most.
_CHUNK = 384


class Form(NamedTuple):
  """What a branch computes.

  Attributes:
    epsilon: of the first norm, added to the variance.
    activation: a key of `feed_forward_tiles.ACTIVATIONS`.
    out_epsilon: of the second norm.
  """

  epsilon: float = 0.0
  activation: str = "gelu_tanh"
  out_epsilon: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
  """Sizes of a call.

  Attributes:
    tokens: of all rows.
    channels: C.
    hidden: H.
    dtype: of tokens, by name.
    form: of the branch.
    modulated: whether scale, shift and gate are of each token.
    keeps: whether the backward pass is given h and the product with w2.
    factors: whether each token has a factor.
    interpret: whether Pallas's interpreter runs the kernels.
  """

  tokens: int
  channels: int
  hidden: int
  dtype: str
  form: Form
  modulated: bool = False
  keeps: bool = False
  factors: bool = False
  interpret: bool = False

  @property
  def tile(self) -> int:
    """Tokens of a tile, whose products over tokens are the fewest."""
    if self.tokens <= LANES:
      return self.tokens
    # Factors lie along lanes.
    step = LANES if self.factors else _ROWS
    sizes = [
      tile
      for tile in range(_TOKENS, LANES - 1, -step)
      if self.vmem_of(tile) <= VMEM_BYTES
    ]
    # The smallest is said not to fit by `unsupported`.
    fewest = lambda tile: tpu.round_up(self.tokens, tile)
    return min(sizes or [LANES], key=fewest)

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
    return self.vmem_of(self.tile)

  def vmem_of(self, tile: int) -> int:
    """The same with tiles of so many tokens."""
    itemsize = jnp.dtype(self.dtype).itemsize
    channels = tpu.round_up(self.channels, LANES)
    hidden = tpu.round_up(self.hidden, LANES)
    weights = 2 * channels * hidden * (itemsize + 2 * 4)
    # Of each token, twice as the next come while these are worked on.
    arrays = 10 + 12 * self.modulated + 2 * self.keeps
    tiles = tile * channels * (arrays * itemsize + 6 * 4)
    kept = 2 * tile * hidden * itemsize * self.keeps
    return weights + tiles + kept + tile * self.chunk * 8 * 4

  def call(self, kernel, name, inputs, outputs, scratch, products):
    return tpu.call(
      functools.partial(kernel, self),
      name,
      grid=(pl.cdiv(self.tokens, self.tile),),
      inputs=inputs,
      outputs=outputs,
      scratch=scratch,
      parallel=0,
      vmem_bytes=max(16 * 2**20, self.vmem_bytes * 5 // 4),
      flops=2 * products * self.tokens * self.channels * self.hidden,
      transcendentals=self.tokens * self.hidden,
      interpret=self.interpret,
    )

  def tiles(self, x) -> Blocked | None:
    """Tokens [tokens, channels], tile by tile."""
    if x is None:
      return None
    block = (self.tile, x.shape[1])
    return Blocked(x, pl.BlockSpec(block, lambda i: (i, 0)))

  def rows_of(self, factor) -> Blocked | None:
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


def unsupported(plan: Plan, x: jax.Array, dtype: Any) -> str | None:
  """Says why the kernels cannot take these arguments, or returns None.

  Args:
    plan: of the call.
    x: [..., C].
    dtype: that the layers compute in.
  """
  if x.dtype != dtype or x.dtype.name not in tpu.DTYPES:
    return (
      f"x is {x.dtype.name} and layers compute in {jnp.dtype(dtype).name}; the "
      f"kernel has one of {' and '.join(tpu.DTYPES)} for both"
    )
  if 0 in (*x.shape, plan.hidden):
    return (
      f"x has shape {x.shape} and there are {plan.hidden} hidden channels; the "
      "kernel needs at least one element"
    )
  if plan.vmem_bytes > VMEM_BYTES:
    return (
      f"x has shape {x.shape} and there are {plan.hidden} hidden channels; the "
      f"kernel needs {plan.vmem_bytes:,} bytes of VMEM, and may use "
      f"{VMEM_BYTES:,}"
    )
  return None


def make_plan(
  x: jax.Array,
  parameters: Parameters,
  form: Form,
  *,
  modulated: bool = False,
  factors: bool = False,
  interpret: bool = False,
) -> Plan:
  """Returns the plan for tokens [..., C]; see `Plan`."""
  return Plan(
    math.prod(x.shape[:-1]),
    *parameters.w1.shape,
    x.dtype.name,
    form,
    modulated=modulated,
    keeps=parameters.out_scale is not None,
    factors=factors,
    interpret=interpret,
  )


def branch(
  x: jax.Array,
  factor: jax.Array | None,
  parameters: Parameters,
  form: Form,
  modulation: jax.Array | None = None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Returns x + factor * gate * norm'(act(norm(x) w1 + b1) w2 + b2).

  Args:
    x: [tokens, C].
    factor: [tokens], of what is dropped at random, which gets no gradient; None
      for ones.
    parameters: of any float dtype; products are of that of `x`.
    form: norms and activation.
    modulation: [tokens, 3 C] of the dtype of `x`: with its bias added s, t and
      the gate, where the first norm is norm(x) (1 + s) + t without parameters
      and there is a second one; None for none.
    interpret: whether Pallas's interpreter runs the kernels.
  """
  plan = make_plan(
    x,
    parameters,
    form,
    modulated=modulation is not None,
    factors=factor is not None,
    interpret=interpret,
  )
  return _branch(plan, x, factor, modulation, parameters)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _branch(plan, x, factor, modulation, parameters):
  return forward(plan, x, factor, modulation, parameters, keeps=False).out


def _branch_forward(plan, x, factor, modulation, parameters):
  made = forward(plan, x, factor, modulation, parameters, keeps=plan.keeps)
  kept = made.hidden, made.product
  return made.out, (x, factor, modulation, parameters, *kept)


def _branch_backward(plan, arrays, out_bar):
  _, factor, _, parameters, *_ = arrays
  x_bar, modulation_bar, bars = backward(plan, *arrays, out_bar)
  bars = jax.tree.map(lambda bar, p: bar.astype(p.dtype), bars, parameters)
  return x_bar, jax.tree.map(jnp.zeros_like, factor), modulation_bar, bars


_branch.defvjp(_branch_forward, _branch_backward)


def forward(plan: Plan, x, factor, modulation, parameters, *, keeps) -> Outputs:
  """Returns the output [tokens, C], with h and the product if `keeps`."""
  of_tokens = lambda n: plan.tiles(plan.buffer(plan.tokens, n))
  return plan.call(
    feed_forward_tiles.forward,
    "feed_forward",
    Inputs(
      plan.tiles(x),
      plan.rows_of(factor),
      plan.tiles(modulation),
      _whole(parameters),
    ),
    Outputs(
      of_tokens(plan.channels),
      of_tokens(plan.hidden) if keeps else None,
      of_tokens(plan.channels) if keeps else None,
    ),
    Scratch(
      *plan.weights,
      read=plan.buffer(plan.tile, plan.channels),
      total=(plan.tile, plan.channels),
    ),
    products=2,
  )


def backward(
  plan: Plan, x, factor, modulation, parameters, hidden, product, out_bar
):
  """Returns gradients of `x`, of the modulation, and those of the parameters.

  The last are float32.
  """
  channels = plan.channels
  tile = plan.buffer(plan.tile, channels)
  turned = plan.buffer(channels, plan.tile)
  of_tokens = lambda n: plan.tiles(plan.buffer(plan.tokens, n))
  bars = plan.call(
    feed_forward_tiles.backward,
    "feed_forward_backward",
    Inputs(
      plan.tiles(x),
      plan.rows_of(factor),
      plan.tiles(modulation),
      _whole(parameters),
      plan.tiles(hidden),
      plan.tiles(product),
      plan.tiles(out_bar),
    ),
    Gradients(
      of_tokens(channels),
      of_tokens(3 * channels) if plan.modulated else None,
      jax.tree.map(
        lambda x: tpu.whole(plan.buffer(*_row(x).shape, dtype=jnp.float32)),
        # As it is multiplied: [C, H].
        parameters._replace(w2=plan.buffer(channels, plan.hidden)),
      ),
    ),
    Scratch(*plan.weights, tile, (plan.tile, channels), tile, turned, turned),
    products=4 if plan.keeps else 5,
  )
  found = bars.parameters
  shaped = jax.tree.map(
    lambda bar, x: bar.reshape(x.shape),
    found._replace(w2=None),
    parameters._replace(w2=None),
  )
  return bars.x, bars.modulation, shaped._replace(w2=found.w2.T)


def _whole(parameters: Parameters) -> Parameters:
  return jax.tree.map(lambda x: tpu.whole(_row(x)), parameters)


def _row(x):
  """A vector [n] as [1, n]; what is no vector as it is."""
  if x.ndim > 1:
    return x
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
  return x[None]
