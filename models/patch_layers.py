"""Blocks of networks whose tokens are patches, and what mixes the tokens.

A mixer is a Flax module that maps tokens [batch, tokens, width], normalised, to
an array like it, which a block adds to the stream:

    mixer(x, train) -> x

A model offers what it knows (heads, hidden widths, dtypes), and each mixer
takes what it has fields for. To try another, add it to MIXERS.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import (
  layers,
  lina_layers,
  normalization,
  open_attention,
  registry,
  taps,
)
from models.feed_forward import exact_gelu, quick_gelu

Dtype = layers.Dtype

# By name, what makes the initialisers of a kernel and of its bias, given the
# kernel's inputs: ViT's, MLP-Mixer's as in timm, and PyTorch's of its layers.
INITS = {
  "normal": lambda inputs: (
    nn.initializers.normal(0.02),
    nn.initializers.zeros,
  ),
  "xavier": lambda inputs: (
    nn.initializers.xavier_uniform(),
    nn.initializers.normal(1e-6),
  ),
  "pytorch": lambda inputs: (lina_layers.uniform(inputs),) * 2,
}

ACTIVATIONS = {"gelu": exact_gelu, "quick_gelu": quick_gelu}


class _Layer(nn.Module):
  """What all of them have.

  Attributes:
    weight_init: a key of INITS.
    dropout_rate: probability of dropping a channel of a token, after each dense
      layer of a feed-forward layer and after attention.
    activation: of feed-forward layers, a key of ACTIVATIONS.
    dtype: dtype of the computation; softmax and statistics are float32.
    param_dtype: dtype of the parameters.
  """

  weight_init: str = "normal"
  dropout_rate: float = 0.0
  activation: str = "gelu"
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  def _dense(self, inputs: int, *args: Any, **options: Any) -> nn.Module:
    kernel_init, bias_init = INITS[self.weight_init](inputs)
    return layers.DenseGeneral(
      *args,
      kernel_init=kernel_init,
      bias_init=bias_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      **options,
    )

  def _dropped(self, x: jax.Array, train: bool) -> jax.Array:
    return nn.Dropout(self.dropout_rate, deterministic=not train)(x)

  @property
  def _shared(self) -> dict[str, Any]:
    """The fields above, for layers within."""
    names = ("weight_init", "dropout_rate", "activation")
    names += ("dtype", "param_dtype")
    return {name: getattr(self, name) for name in names}


class FeedForward(_Layer):
  """shrink(activation(expand(x))), of the last axis.

  Attributes:
    hidden_width: channels between the two.
  """

  hidden_width: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [..., width] to an array like it."""
    width = x.shape[-1]
    y = self._dense(width, self.hidden_width, name="expand")(x)
    y = taps.tap(self, "hidden", ACTIVATIONS[self.activation](y))
    y = self._dropped(y, train)
    y = self._dense(self.hidden_width, width, name="shrink")(y)
    return self._dropped(y, train)


class SelfAttention(_Layer):
  """Multi-head attention among all tokens.

  Attributes:
    heads: number of heads, which divides the width.
    implementation: see `attention.kernels.dispatch`.
  """

  heads: int = 1
  implementation: str = "auto"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it."""
    width = x.shape[-1]
    shape = (3, self.heads, width // self.heads)
    qkv = self._dense(width, shape, name="qkv")(x)
    # Three times [batch, tokens, heads, width / heads].
    q, k, v = (
      taps.tap(self, name, qkv[..., i, :, :])
      for i, name in enumerate(("queries", "keys", "values"))
    )
    out = open_attention.dot_product(
      self, q, k, v, implementation=self.implementation
    )
    out = self._dense(width, width, axis=(-2, -1), name="out")(out)
    return self._dropped(out, train)


class TokenMlp(_Layer):
  """A feed-forward layer along the tokens: MLP-Mixer's (arXiv 2105.01601).

  Its kernels have the number of tokens for a size, which is thereby fixed.

  Attributes:
    token_hidden: channels between its dense layers.
  """

  token_hidden: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it."""
    y = FeedForward(
      hidden_width=self.token_hidden, name="tokens", **self._shared
    )(x.swapaxes(1, 2), train)
    return y.swapaxes(1, 2)


class GatedByMixer(_Layer):
  """project(x) * mixer(x), the latter a whole block of MLP-Mixer.

  NiNformer's gating unit (arXiv 2403.02411). The gate is the block's output
  itself, its stream included, so it has no bound.

  Attributes:
    token_hidden: channels within the block's token layer.
    hidden_width: channels within its channel layer.
    epsilon: of its norms.
  """

  token_hidden: int = 0
  hidden_width: int = 0
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it."""
    width = x.shape[-1]
    gate = Block(
      mixer=functools.partial(
        TokenMlp, token_hidden=self.token_hidden, **self._shared
      ),
      hidden_width=self.hidden_width,
      epsilon=self.epsilon,
      name="gate",
      **self._shared,
    )(x, train)
    return self._dense(width, width, name="project")(x) * gate


class Block(_Layer):
  """x + mixer(norm(x)), and then x + ffn(norm(x)).

  Attributes:
    mixer: makes the mixer, given a name.
    hidden_width: channels within the feed-forward layer.
    shared_norm: whether both norms are the same one, NiNformer's.
    epsilon: of the norms.
    stochastic_depth_rate: probability of dropping each branch.
  """

  mixer: functools.partial | None = None
  hidden_width: int = 0
  shared_norm: bool = False
  epsilon: float = 1e-6
  stochastic_depth_rate: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it."""
    norm = functools.partial(
      normalization.LayerNorm,
      epsilon=self.epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    drop = functools.partial(layers.StochasticDepth, self.stochastic_depth_rate)
    first = norm(name="norm")
    second = first if self.shared_norm else norm(name="ffn_norm")
    x = taps.tap(self, "input_state", x)
    y = drop()(self.mixer(name="mixer")(first(x), train), train)
    x = taps.tap(self, "middle_state", x + taps.tap(self, "mixer_output", y))
    y = FeedForward(hidden_width=self.hidden_width, name="ffn", **self._shared)(
      second(x), train
    )
    y = taps.tap(self, "mlp_output", drop()(y, train))
    return taps.tap(self, "hidden_state", x + y)


MIXERS: dict[str, type[nn.Module]] = {
  "attention": SelfAttention,
  "mlp": TokenMlp,
  "ninformer": GatedByMixer,
}


def maker(mixer: str, offered: Mapping[str, Any]) -> functools.partial:
  """Returns what makes a mixer, given a name.

  Args:
    mixer: a key of MIXERS.
    offered: what the model knows; the mixer takes what it has fields for.

  Raises:
    ValueError: if there is no such mixer.
  """
  if mixer not in MIXERS:
    raise registry.unknown("mixer", mixer, MIXERS)
  names = _fields(MIXERS[mixer])
  taken = {key: value for key, value in offered.items() if key in names}
  return functools.partial(MIXERS[mixer], **taken)


def needs(mixer: str, field: str) -> bool:
  """Whether a mixer has a field, as "heads" or "token_hidden"."""
  return field in _fields(MIXERS[mixer])


def _fields(cls: type[nn.Module]) -> set[str]:
  return {field.name for field in dataclasses.fields(cls)}
