"""Feed-forward layers of transformers, by name."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, registry, taps

Activation = Callable[[jax.Array], jax.Array]

exact_gelu = functools.partial(nn.gelu, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
  """Returns x sigmoid(1.702 x), CLIP's for GELU (GELU's paper, 1606.08415)."""
  return x * nn.sigmoid(1.702 * x)


def squared_relu(x: jax.Array) -> jax.Array:
  """Returns max(x, 0)^2 (Primer, arXiv 2109.08668)."""
  return jnp.square(nn.relu(x))


# Name: (activation, whether its output gates a second projection; GLU variants
# are of arXiv 2002.05202).
FEED_FORWARDS: dict[str, tuple[Activation, bool]] = {
  "gelu": (exact_gelu, False),
  "gelu_tanh": (nn.gelu, False),
  "squared_relu": (squared_relu, False),
  "sigmoid_glu": (nn.sigmoid, True),
  "swiglu": (nn.silu, True),
  "geglu": (exact_gelu, True),
  "geglu_tanh": (nn.gelu, True),
}


def find(name: str) -> tuple[Activation, bool]:
  """Returns what FEED_FORWARDS has under `name`.

  Raises:
    ValueError: if there is no such feed-forward layer.
  """
  if name not in FEED_FORWARDS:
    raise registry.unknown("mlp", name, (*FEED_FORWARDS, "none"))
  return FEED_FORWARDS[name]


class FeedForward(nn.Module):
  """Dense layers "expand" and "shrink", and "gate" beside the first, if any.

  shrink(activation(gate(x)) * expand(x)), or shrink(activation(expand(x))).

  Attributes:
    kind: a key of FEED_FORWARDS.
    hidden_width: channels between the layers.
    use_bias: whether the dense layers have biases.
    kernel_init: initializer of what reads the residual stream.
    out_init: initializer of what writes to it.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  kind: str
  hidden_width: int
  use_bias: bool
  kernel_init: layers.Initializer
  out_init: layers.Initializer
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, length, width] to an array like it."""
    activation, gated = find(self.kind)
    dense = functools.partial(
      layers.Dense,
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    into = functools.partial(
      dense, self.hidden_width, kernel_init=self.kernel_init
    )
    y = into(name="expand")(x)
    y = activation(into(name="gate")(x)) * y if gated else activation(y)
    y = taps.tap(self, "hidden", y)
    return dense(x.shape[-1], kernel_init=self.out_init, name="shrink")(y)
