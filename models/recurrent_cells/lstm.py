"""Long short-term memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers
from models.recurrent_cells import scanning
from models.recurrent_cells.scanning import State


class LSTM(nn.Module):
  """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    i, f, g, o = W x_t + R h_{t-1} + b      sigmoid, sigmoid, tanh, sigmoid
    c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)

  The forget gate's bias begins at one (Jozefowicz et al. 2015).

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
    inputs = layers.Dense(
      4 * self.width,
      bias_init=_forget_one,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="input",
    )(x)
    shape = (self.width, 4 * self.width)
    init = nn.initializers.lecun_normal()
    kernel = self.param("recurrent", init, shape, self.param_dtype)

    def step(state, x):
      x = x + scanning.product(state["hidden"], kernel, self.dtype)
      i, f, g, o = jnp.split(x, 4, axis=-1)
      cell = nn.sigmoid(f) * state["cell"] + nn.sigmoid(i) * jnp.tanh(g)
      return {"hidden": nn.sigmoid(o) * jnp.tanh(cell), "cell": cell}

    return scanning.scan(step, state, inputs)

  @staticmethod
  def empty(batch: int, width: int) -> State:
    """The state before anything was seen."""
    return scanning.empty(("hidden", "cell"), batch, width)


def _forget_one(key, shape, dtype):
  del key
  width = shape[0] // 4
  return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)
