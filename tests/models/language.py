"""A transformer small enough for tests, and rows of it in three layouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from models.transformer import Transformer
from tests import parity_helper

LENGTH = 11
FIELDS = {
  "vocabulary_size": 13,
  "width": 16,
  "depth": 1,
  "heads": 4,
  "kv_heads": 2,
  "mlp_width": 24,
  "max_length": LENGTH,
}
# Documents [start, end) in the rows of a batch: one that fills its row, one
# that is padded on the left, and three in one row.
PACKED = ([(0, 11)], [(3, 11)], [(0, 4), (4, 9), (9, 11)])


def model(**overrides):
  return Transformer(**{**FIELDS, **overrides})


def variables(model, seed=0):
  """Random numbers for all variables, those that begin as 0 or 1 too."""
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  drawn = parity_helper.randomise(shapes, seed)
  # Scores far apart, or every mask would do.
  scale = lambda path, x: 3 * x if "query" in str(path) else x
  return jax.tree_util.tree_map_with_path(scale, drawn)


def tokens(shape=(3, LENGTH), seed=1):
  return np.random.default_rng(seed).integers(0, 13, shape, np.int32)


def packed():
  """Returns tokens, positions and segments of PACKED, [rows, LENGTH] each."""
  positions = np.full((len(PACKED), LENGTH), -1, np.int32)
  segments = np.zeros_like(positions)
  for row, documents in enumerate(PACKED):
    for number, (start, end) in enumerate(documents):
      positions[row, start:end] = np.arange(end - start)
      segments[row, start:end] = number
  return tokens(), positions, segments


def alone(tokens):
  """Returns each document of PACKED in a row of its own, [5, LENGTH].

  What comes behind it is other tokens, which a causal model does not see.
  """
  rows = [
    np.concatenate([row[start:end], row[:start], row[end:]])
    for row, documents in zip(tokens, PACKED, strict=True)
    for start, end in documents
  ]
  return np.stack(rows)


def unpacked(out):
  """Puts [rows, LENGTH, ...] into the layout of `alone`, NaN behind it."""
  rows = []
  for row, documents in zip(np.asarray(out), PACKED, strict=True):
    for start, end in documents:
      rest = np.full((LENGTH - (end - start), *row.shape[1:]), np.nan)
      rows.append(np.concatenate([row[start:end], rest]))
  return np.stack(rows)


def assert_same_tokens(actual, expected, tolerance=1e-5):
  """Compares where `actual`, from `unpacked`, has something."""
  there = ~np.isnan(actual)
  assert there.sum() == 30 * actual.shape[-1]
  np.testing.assert_allclose(
    actual[there], np.asarray(expected)[there], rtol=0, atol=tolerance
  )


def decode(model, variables, arrays, prefills):
  """Runs the arrays through a cache: some pieces, then token by token.

  Args:
    model: a transformer.
    variables: its variables.
    arrays: tokens, positions and segments [batch, length].
    prefills: lengths of the pieces.

  Returns:
    Logits [batch, length, vocabulary].
  """
  call = functools.partial(model.apply, variables)
  batch, length = arrays[0].shape
  cache, outs, start = model.init_cache(batch, length), [], 0
  for piece in prefills:
    part = [x[:, start : start + piece] for x in arrays]
    out, cache = call(part[0], positions=part[1], segments=part[2], cache=cache)
    outs.append(out)
    start += piece

  def step(cache, xs):
    token, position, segment = (x[:, None] for x in xs)
    out, cache = call(token, positions=position, segments=segment, cache=cache)
    return cache, out[:, 0]

  rest = [x[:, start:].swapaxes(0, 1) for x in arrays]
  _, out = jax.lax.scan(step, cache, rest)
  return jnp.concatenate([*outs, out.swapaxes(0, 1)], axis=1)
