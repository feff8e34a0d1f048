"""What a mask says of its tiles, against a look at each of its booleans."""

import functools
import itertools

import jax
import numpy as np

from attention.masks import EMPTY, FULL, MIXED


def positions(q_len, kv_len):
  return np.arange(q_len)[:, None], np.arange(kv_len)[None, :]


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def dense(mask, q_len, kv_len, batch=1, heads=1):
  return mask.dense(q_len, kv_len, batch=batch, heads=heads)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def traced_states(mask, *sizes):
  return mask.tile_states(*sizes)


def true_states(visible, block_q, block_k):
  """Looks at each tile of booleans [batch, heads, q_len, kv_len]."""
  batch, heads, q_len, kv_len = visible.shape
  rows, columns = range(0, q_len, block_q), range(0, kv_len, block_k)
  states = np.zeros((batch, heads, len(rows), len(columns)), int)
  for (i, row), (j, column) in itertools.product(
    enumerate(rows), enumerate(columns)
  ):
    tile = visible[:, :, row : row + block_q, column : column + block_k]
    full, some = tile.all(axis=(2, 3)), tile.any(axis=(2, 3))
    states[:, :, i, j] = np.where(full, FULL, np.where(some, MIXED, EMPTY))
  return states


def _states(mask, *sizes):
  """Compiles what needs the program to run."""
  leaves = jax.tree.leaves(mask)
  if any(isinstance(leaf, jax.Array) for leaf in leaves) and not any(
    isinstance(leaf, np.ndarray) for leaf in leaves
  ):
    return traced_states(mask, *sizes)
  return mask.tile_states(*sizes)


def check_states(mask, visible, block_q, block_k, exact):
  """Compares what a mask says of its tiles with its booleans."""
  q_len, kv_len = visible.shape[2:]
  states = _states(mask, q_len, kv_len, block_q, block_k)
  assert states.ndim == 4
  states = np.asarray(states)
  truth = true_states(visible, block_q, block_k)
  states = np.broadcast_to(states, truth.shape)
  wrong = (states != truth) if exact else (states != truth) & (states != MIXED)
  assert not wrong.any(), np.argwhere(wrong)[:5]
  return states
