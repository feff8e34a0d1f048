"""A small model with maps and hidden states to tap, in any precision."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import taps


class Attention(nn.Module):
  """Two heads over the tokens, residual."""

  dtype: type

  @nn.compact
  def __call__(self, x):
    dense = lambda name: nn.Dense(8, name=name, param_dtype=self.dtype)
    q, k, v = (
      dense(name)(x).reshape(*x.shape[:2], 2, 4) for name in ("q", "k", "v")
    )
    scores = jnp.einsum("bihd,bjhd->bhij", q, k)
    weights = taps.tap(self, "attention_weights", jax.nn.softmax(scores))
    mixed = jnp.einsum("bhij,bjhd->bihd", weights, v)
    return dense("out")(mixed.reshape(x.shape))


class Block(nn.Module):
  """Attention, then a dense layer that sees the condition."""

  dtype: type

  @nn.compact
  def __call__(self, x, condition):
    x = x + Attention(self.dtype, name="attention")(x)
    y = jnp.tanh(x + condition[:, None])
    x = x + nn.Dense(8, name="dense", param_dtype=self.dtype)(y)
    return taps.tap(self, "hidden_state", x)


class Toy(nn.Module):
  """Of x [batch, tokens, channels], as diffusion transformers are called."""

  num_classes: int = 4
  depth: int = 2
  dtype: type = jnp.float32

  @nn.compact
  def __call__(self, x, time, label=None, train=False):
    del train
    table = self.param(
      "table", nn.initializers.normal(), (self.num_classes + 1, 8), self.dtype
    )
    condition = table[label] + jnp.sin(time / 300).astype(self.dtype)[:, None]
    y = nn.Dense(8, name="into", param_dtype=self.dtype)(x)
    for n in range(self.depth):
      y = Block(self.dtype, name=f"block_{n}")(y, condition)
    return nn.Dense(x.shape[-1], name="out", param_dtype=self.dtype)(y)


def create(dtype=jnp.float32, seed=0):
  """Returns (model, variables)."""
  model = Toy(dtype=dtype)
  variables = model.init(
    jax.random.key(seed),
    jnp.zeros((1, 6, 3), dtype),
    jnp.zeros(1),
    jnp.zeros(1, jnp.int32),
  )
  return model, variables
