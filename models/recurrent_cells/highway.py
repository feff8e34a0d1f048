"""Recurrent highway networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers
from models.recurrent_cells import scanning
from models.recurrent_cells.scanning import State


class RHN(nn.Module):
  """Zilly et al. (arXiv 1607.03474), equations 6 to 9, with coupled gates.

    s_0 = h_{t-1};  for l = 1 .. L
      H = tanh(W_H x_t [l = 1 only] + R_H^l s_{l-1} + b_H^l)
      T = sigmoid(W_T x_t [l = 1 only] + R_T^l s_{l-1} + b_T^l)
      s_l = s_{l-1} + T (H - s_{l-1})
    h_t = s_L

  Without a negative bias of the transform gate, more than three micro-steps do
  not train.

  Attributes:
    width: of the state.
    micro_steps: L, layers that a state goes through at each time.
    transform_bias: what b_T begins at.
    dtype: dtype of the products.
    param_dtype: dtype of the parameters.
  """

  width: int
  micro_steps: int = 3
  transform_bias: float = -2.0
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Returns (hidden [batch, time, width], the last state)."""
    width, steps = self.width, self.micro_steps
    # [batch, time, 2 width]: of H and of T.
    inputs = layers.Dense(
      2 * width,
      use_bias=False,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="input",
    )(x)
    init = nn.initializers.lecun_normal(batch_axis=0)
    kernel = self.param(
      "recurrent", init, (steps, width, 2 * width), self.param_dtype
    )
    bias = self.param("bias", self._bias, (steps, 2 * width), self.param_dtype)

    def step(state, x):
      s = state["hidden"]
      for i in range(steps):
        y = scanning.product(s, kernel[i], self.dtype) + bias[i][None]
        y = y + x if i == 0 else y
        h, t = jnp.split(y, 2, axis=-1)
        s = s + nn.sigmoid(t) * (jnp.tanh(h) - s)
      return {"hidden": s}

    return scanning.scan(step, state, inputs)

  def _bias(self, key, shape, dtype):
    del key
    bias = jnp.zeros(shape, dtype)
    return bias.at[:, self.width :].set(self.transform_bias)

  @staticmethod
  def empty(batch: int, width: int) -> State:
    """The state before anything was seen."""
    return scanning.empty(("hidden",), batch, width)
