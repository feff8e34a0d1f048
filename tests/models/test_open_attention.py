"""Attention with an open map against its formulas, and as one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import features
from models import open_attention, taps

BATCH, QUERIES, KEYS, HEADS, DIM = 2, 5, 7, 3, 4
VISIBLE = np.arange(KEYS) < np.array([4, 7])[:, None]


class Attention(taps.Tapped):
  """One of the two kinds, without parameters."""

  linear: bool = False

  def __call__(self, q, k, v):
    if not self.linear:
      return open_attention.dot_product(
        self,
        q,
        k,
        v,
        implementation="xla",
        mask=attention.masks.padding(jnp.asarray(VISIBLE.sum(1))),
        scale=0.7,
      )

    def attend(q, k, v, implementation):
      return attention.linear_attention(
        q,
        k,
        v,
        feature_map=features.elu_plus_one,
        implementation=implementation,
      )

    return open_attention.linear(self, attend, q, k, v, implementation="xla")


def _draw():
  rng = np.random.default_rng(0)
  shapes = [(BATCH, n, HEADS, DIM) for n in (QUERIES, KEYS, KEYS)]
  return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _weights(q, k, linear, factor=1.0):
  """Maps [batch, heads, queries, keys] in float64."""
  if linear:
    q, k = (np.where(x > 0, x + 1, np.exp(x)) for x in (q, k))
    weights = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k)
  else:
    scores = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k)
    weights = np.exp(factor * 0.7 * scores) * VISIBLE[:, None, None]
  return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("linear", [False, True])
def test_the_map_and_what_is_made_of_it(linear):
  arrays = q, k, v = _draw()
  model = Attention(linear=linear)
  expected = _weights(q, k, linear)

  @jax.jit
  def run(*arrays):
    read = taps.read(model, {}, *arrays, names=["attention_weights"])
    eye = lambda x, site: jnp.broadcast_to(jnp.eye(QUERIES, KEYS), x.shape)
    first = {"attention_weights": eye}
    closed = model.apply({}, *arrays)
    return closed, *read, taps.read(model, {}, *arrays, edit=first)[0]

  closed, opened, values, edited = run(*arrays)
  np.testing.assert_allclose(
    values["attention_weights"], expected, atol=1e-6, rtol=1e-5
  )
  out = np.einsum("bhqk,bkhd->bqhd", expected, v)
  for found in (closed, opened):
    np.testing.assert_allclose(found, out, atol=1e-5)
  np.testing.assert_allclose(edited, v[:, :QUERIES], atol=1e-6)


def test_scores_are_edited_before_the_softmax():
  q, k, v = _draw()
  model = Attention()
  double = {"attention_scores": lambda scores, site: 2 * scores}
  out, values = jax.jit(
    lambda *arrays: taps.read(
      model, {}, *arrays, names=["attention_weights"], edit=double
    )
  )(q, k, v)
  expected = _weights(q, k, False, factor=2.0)
  np.testing.assert_allclose(values["attention_weights"], expected, atol=1e-6)
  expected = np.einsum("bhqk,bkhd->bqhd", expected, v)
  np.testing.assert_allclose(out, expected, atol=1e-5)
