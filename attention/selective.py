"""The selective scan of Mamba, many positions at a time, and its four ways.

A channel x has a memory h of `states` numbers, each of which decays by itself,
by how much depends on the position (Mamba, arXiv 2312.00752, section 3.2):

    h_t = exp(dt_t a) h_(t-1) + dt_t x_t b_t,    y_t = c_t . h_t + d x_t.

This is linear attention of a head for each channel, with b for keys, c for
queries and one value, and a decay for each feature (`attention.recurrence`). A
chunk there costs products of all pairs of its positions for each state, which
no matrix unit takes since each state has its decay: so here a chunk is an
associative scan. Between chunks the memory goes on in a loop, and the gradient
computes a chunk again, so that memories of one chunk exist at a time and not
`states` times the input.

There is no kernel, though one would pay: of 4 images of 128 x 128 places, 4
ways of 96 channels and 16 states, XLA's program for a v5e takes 91 ms by its
own estimate, 300 ms with the gradient, in chunks of 64 (more with 16 or 256),
and to read what comes in and write what goes out takes 0.4 ms.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks


class _Step(NamedTuple):
  """h -> factor h + term, of one position or of several after each other."""

  factor: Array
  term: Array


def selective_scan(
  x: Float[Array, "batch length heads dim"],
  dt: Float[Array, "batch length heads dim"],
  a: Float[Array, "heads dim states"],
  b: Float[Array, "batch length heads states"],
  c: Float[Array, "batch length heads states"],
  d: Float[Array, "heads dim"] | None = None,
  *,
  memory: Float[Array, "batch heads dim states"] | None = None,
  return_memory: bool = False,
  chunk_size: int = 64,
) -> Array | tuple[Array, Array]:
  """Returns y of the recurrence above, for each head and channel.

  Args:
    x: inputs.
    dt: sizes of steps, 0 or more: 0 leaves the memory as it is.
    a: what decays grow by with steps, below 0; one for each state.
    b: what an input writes to, the same for all channels of a head.
    c: what is read.
    d: factor of the input beside the memory; None for none.
    memory: before the first position; zeros if None.
    return_memory: whether to return the memory after the last one too.
    chunk_size: positions that are taken at a time.

  Returns:
    [batch, length, heads, dim] in the dtype of `x`, and the memory, float32
    [batch, heads, dim, states], if asked for. All is computed in float32.

  Raises:
    ValueError: for shapes or dtypes that do not fit.
  """
  _check(x, dt, a, b, c, d, memory)
  checks.whole("chunk_size", chunk_size, 1)
  checks.flag("return_memory", return_memory)
  if memory is None:
    memory = jnp.zeros((x.shape[0], *a.shape), jnp.float32)
  length = x.shape[1]
  chunk_size = max(1, min(chunk_size, length))
  chunks = -(-length // chunk_size)

  def cut(part):
    # [batch, length, ...] -> [chunks, chunk, batch, ...]. A step of size 0, as
    # padding has, keeps the memory.
    part = jnp.moveaxis(part, 1, 0)
    extra = chunks * chunk_size - length
    part = jnp.pad(part, [(0, extra)] + [(0, 0)] * (part.ndim - 1))
    return part.reshape(chunks, chunk_size, *part.shape[1:])

  take = jax.checkpoint(functools.partial(_chunk, a.astype(jnp.float32)))
  memory, out = jax.lax.scan(
    take, memory.astype(jnp.float32), tuple(map(cut, (x, dt, b, c)))
  )
  # [chunks, chunk, batch, ...] -> [batch, length, ...]
  out = out.reshape(chunks * chunk_size, *out.shape[2:])[:length]
  out = jnp.moveaxis(out, 0, 1)
  if d is not None:
    out = out + x.astype(jnp.float32) * d.astype(jnp.float32)[None, None]
  out = out.astype(x.dtype)
  return (out, memory) if return_memory else out


def _chunk(a, memory, parts):
  """Takes [chunk, batch, heads, ...]: the memory after it, and what is read."""
  x, dt, b, c = (part.astype(jnp.float32) for part in parts)
  # [chunk, batch, heads, dim, states]
  factor = jnp.exp(dt[..., None] * a[None, None])
  term = (dt * x)[..., None] * b[..., None, :]
  memories = _memories(factor, term, memory)
  return memories[-1], jnp.sum(memories * c[..., None, :], axis=-1)


@jax.custom_vjp
def _memories(factor: Array, term: Array, memory: Array) -> Array:
  """Returns h_t = factor_t h_(t-1) + term_t for all t, from h_(-1) = memory.

  Its gradient runs the other way, dh_t = g_t + factor_(t+1) dh_(t+1), and is
  such a scan itself; autodiff would take the tree of this one apart instead,
  for two to three times the work.

  Args:
    factor: [chunk, ...].
    term: likewise.
    memory: [...].
  """
  steps = jax.lax.associative_scan(_join, _Step(factor, term))
  return steps.factor * memory[None] + steps.term


def _memories_forward(factor, term, memory):
  memories = _memories(factor, term, memory)
  return memories, (factor, memory, memories)


def _memories_backward(residuals, g):
  factor, memory, memories = residuals
  after = jnp.concatenate([factor[1:], jnp.zeros_like(factor[:1])])
  dterm = jax.lax.associative_scan(_join, _Step(after, g), reverse=True).term
  before = jnp.concatenate([memory[None], memories[:-1]])
  return dterm * before, dterm, dterm[0] * factor[0]


_memories.defvjp(_memories_forward, _memories_backward)


def _join(first: _Step, then: _Step) -> _Step:
  """The step of `first` and then `then`; from behind where reversed."""
  return _Step(then.factor * first.factor, then.factor * first.term + then.term)


def four_ways(x: Float[Array, "batch height width 4 dim"]) -> Array:
  """Returns [batch, places, 4, dim]: the places of an image in four orders.

  Row by row, column by column, and both from the end: the cross-scan of VMamba
  (arXiv 2401.10166), in the order of MambaIR's code (arXiv 2402.15648).

  Args:
    x: an array for each way.

  Raises:
    ValueError: for another shape.
  """
  if x.ndim != 5 or x.shape[3] != 4:
    raise ValueError(
      f"x has shape {x.shape}; it must be [batch, height, width, 4, dim]"
    )
  batch, height, width, _, dim = x.shape
  rows, columns = x[..., 0::2, :], x[..., 1::2, :].swapaxes(1, 2)
  # [batch, places, 2, dim] each: from the start, from the end.
  rows, columns = (
    y.reshape(batch, height * width, 2, dim) for y in (rows, columns)
  )
  return jnp.stack(
    [rows[:, :, 0], columns[:, :, 0], rows[:, ::-1, 1], columns[:, ::-1, 1]], 2
  )


def from_four_ways(
  y: Float[Array, "batch places 4 dim"], height: int, width: int
) -> Float[Array, "batch height width dim"]:
  """Returns the sum of what the four ways of `four_ways` have for each place.

  Raises:
    ValueError: if these are not the places of an image of that size.
  """
  if y.ndim != 4 or y.shape[1:3] != (height * width, 4):
    raise ValueError(
      f"y has shape {y.shape}; an image of {height} x {width} needs [batch, "
      f"{height * width}, 4, dim]"
    )
  batch, _, _, dim = y.shape
  rows = y[:, :, 0] + y[:, ::-1, 2]
  columns = y[:, :, 1] + y[:, ::-1, 3]
  columns = columns.reshape(batch, width, height, dim).swapaxes(1, 2)
  return rows.reshape(batch, height, width, dim) + columns


def _check(x, dt, a, b, c, d, memory) -> None:
  arrays = {"x": x, "dt": dt, "a": a, "b": b, "c": c, "d": d, "memory": memory}
  arrays = {name: y for name, y in arrays.items() if y is not None}
  for name, y in arrays.items():
    checks.floating(name, y)
  if x.ndim != 4 or a.ndim != 3:
    raise ValueError(
      f"x has shape {x.shape} and a {a.shape}; they must be [batch, length, "
      "heads, dim] and [heads, dim, states]"
    )
  batch, length, heads, dim = x.shape
  states = a.shape[2]
  wanted = {
    "dt": x.shape,
    "a": (heads, dim, states),
    "b": (batch, length, heads, states),
    "c": (batch, length, heads, states),
    "d": (heads, dim),
    "memory": (batch, heads, dim, states),
  }
  for name, shape in wanted.items():
    if name in arrays and arrays[name].shape != shape:
      raise ValueError(
        f"{name} has shape {arrays[name].shape}; x of shape {x.shape} and a of "
        f"shape {a.shape} need {shape}"
      )
