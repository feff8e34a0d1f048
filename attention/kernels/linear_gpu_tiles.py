"""Linear attention on NVIDIA GPUs: how kernels get tiles of what is there.

Arrays are [batch, tokens, heads, channels] as models have them, in chunks of
tokens and channels as `triton.pieces` cuts them: 96 are tiles of 64 and 32.
"""

import jax.numpy as jnp

from attention.kernels import triton

# Tokens in a chunk, if there is no reason for another number.
CHUNK = 64


def rows_of(chunk, size: int = CHUNK):
  """Returns the numbers [size] of the tokens of a chunk."""
  return chunk * size + jnp.arange(size)


def load(ref, batch, rows, head, phi, kept=None):
  """Returns features of some tokens in pieces [rows, size], float32.

  Args:
    ref: [batch, tokens, heads, channels].
    batch: which one.
    rows: numbers of the tokens.
    head: which one.
    phi: the map. Where there is no channel, features are zeros.
    kept: [rows, 1], which tokens count; the map gets zeros for others, and
      their features are zeros. All if None.
  """
  return [
    features_of(x, phi, mask, kept)
    for x, mask in load_raw(ref, batch, rows, head)
  ]


def load_raw(ref, batch, rows, head):
  """Returns pairs: a piece, float32, and which channels of it there are.

  The latter [1, size], None if all are.
  """
  found = []
  for start, size in pieces(ref):
    index, tails = index_of(ref, batch, rows, head, start, size)
    x = triton.load(ref, index, tails=tails).astype(jnp.float32)
    beyond = start + size > ref.shape[3]
    found.append((x, index[3] < ref.shape[3] if beyond else None))
  return found


def features_of(x, phi, mask, kept):
  """Returns phi of a piece, zeros where there is no token or channel.

  A map may make features of what is not there: phi(0) = 1.
  """
  x = phi(only(x, kept))
  return only(only(x, mask), kept)


def only(x, mask):
  """Returns `x` with zeros where `mask` is not, all of it for None."""
  return x if mask is None else jnp.where(mask, x, 0.0)


def store(ref, batch, rows, head, parts):
  """Writes pieces as `load` cuts them."""
  for (start, size), x in zip(pieces(ref), parts, strict=True):
    index, tails = index_of(ref, batch, rows, head, start, size)
    triton.store(ref, index, x, tails=tails)


def index_of(ref, batch, rows, head, start, size):
  """Returns the index of a piece, and along which axes it ends beyond."""
  channels = start + jnp.arange(size)[None, :]
  tails = triton.tail(1, ref.shape[1], rows.size)
  if start + size > ref.shape[3]:
    tails += (3,)
  return (batch, rows[:, None], head, channels), tails


def pieces(ref):
  """Returns (start, size) of the tiles of the channels of an array."""
  return triton.pieces(ref.shape[3])


def width(x) -> int:
  """Returns the channels of an array in whole tiles."""
  return sum(size for _, size in triton.pieces(x.shape[3]))
