"""An attend without a model around it, and attention in NumPy, float64."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from models import attends
from models.attends import Layout

BATCH, HEADS, DIM = 2, 2, 4


class Bare(nn.Module):
  """An attend without a model around it."""

  attend: str
  layout: Layout
  options: dict
  implementation: str = "xla"

  @nn.compact
  def __call__(self, q, k, v):
    attend = attends.find(self.attend)
    return attend(self, q, k, v, self.layout, **self.options)


def run(attend, arrays, layout, state=None, **options):
  variables = {attends.STATE: state} if state else {}
  arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
  out, moved = Bare(attend, layout, options).apply(
    variables, *arrays, mutable=[attends.STATE]
  )
  return np.asarray(out), moved.get(attends.STATE, {})


def drawn(tokens, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    rng.standard_normal((BATCH, tokens, HEADS, DIM)).astype(np.float32)
    for _ in range(3)
  )


def attended(q, k, v, visible, scale=DIM**-0.5):
  scores = scale * np.einsum(
    "bqhd,bkhd->bhqk", *(x.astype(float) for x in (q, k))
  )
  scores = np.where(visible, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bhqk,bkhd->bqhd", weights, v.astype(float))
