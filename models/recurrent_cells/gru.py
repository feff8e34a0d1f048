"""Gated recurrent units."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers
from models.recurrent_cells import scanning
from models.recurrent_cells.scanning import State


class GRU(nn.Module):
  """Cho et al. (arXiv 1406.1078), with the reset after the product.

    r, z = sigmoid(W x_t + R h_{t-1} + b)
    n = tanh(W_n x_t + b_n + r (R_n h_{t-1} + d_n))
    h_t = (1 - z) n + z h_{t-1}

  The reset after the product is cuDNN's and PyTorch's form: one product a step.

  Attributes:
    width: of the state.
    dtype: dtype of the products.
    param_dtype: dtype of the parameters.
  """

  width: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Returns (hidden [batch, time, width], the last state)."""
    width = self.width
    inputs = layers.Dense(
      3 * width, dtype=self.dtype, param_dtype=self.param_dtype, name="input"
    )(x)
    init = nn.initializers.lecun_normal()
    kernel = self.param("recurrent", init, (width, 3 * width), self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)

    def step(state, x):
      hidden = state["hidden"]
      y = scanning.product(hidden, kernel, self.dtype)
      r, z = jnp.split(nn.sigmoid(x[:, : 2 * width] + y[:, : 2 * width]), 2, -1)
      n = jnp.tanh(x[:, 2 * width :] + r * (y[:, 2 * width :] + bias[None]))
      return {"hidden": (1 - z) * n + z * hidden}

    return scanning.scan(step, state, inputs)

  @staticmethod
  def empty(batch: int, width: int) -> State:
    """The state before anything was seen."""
    return scanning.empty(("hidden",), batch, width)
