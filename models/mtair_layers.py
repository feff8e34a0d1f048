"""Blocks of MTAIR: Restormer's, with a scan beside, and prompts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from models import layers, normalization, taps
from models.feed_forward import exact_gelu
from models.restoration_layers import pixel_shuffle, pixel_unshuffle

# As PyTorch draws the kernels of dense layers and convolutions.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
LayerNorm = functools.partial(normalization.LayerNorm, epsilon=1e-5)


class ChannelAttention(nn.Module):
  """Restormer's MDTA (arXiv 2111.09881, section 3.1), or that of two images.

  Queries, keys and values are made by a dense layer and a 3 x 3 filter for each
  channel; `attention.channel_attention` says what becomes of them.

  Attributes:
    heads: number of heads; divides the channels.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  heads: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, context: jax.Array | None = None
  ) -> jax.Array:
    """Maps an image to one like it.

    Args:
      x: [batch, height, width, channels].
      context: another one, that keys and values are made of; `x` if None.
    """
    batch, height, width, channels = x.shape
    if context is None:
      q, k, v = jnp.split(self._project("qkv", x, 3), 3, axis=-1)
    else:
      q = self._project("q", x, 1)
      k, v = jnp.split(self._project("kv", context, 2), 2, axis=-1)
    # [batch, places, heads, channels / heads]
    q, k, v = (
      y.reshape(batch, height * width, self.heads, channels // self.heads)
      for y in (q, k, v)
    )
    temperature = self.param(
      "temperature", nn.initializers.ones, (self.heads,), self.param_dtype
    )
    weights = attention.channel_attention_weights(q, k, temperature)
    weights = taps.tap(self, "attention_weights", weights)
    y = attention.apply_channel_attention_weights(weights, v).reshape(x.shape)
    return _dense(self, channels, "out")(y)

  def _project(self, name: str, x: jax.Array, count: int) -> jax.Array:
    x = _dense(self, count * x.shape[-1], name)(x)
    return _filter(self, f"{name}_conv")(x)


class GatedFeedForward(nn.Module):
  """Restormer's GDFN (arXiv 2111.09881, section 3.2).

  shrink(gelu(a) * b) of [a; b] = conv3x3(expand(x)), each channel with its own
  filter.

  Attributes:
    expansion: channels of a and of b over those of the image, rounded down.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  expansion: float
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to an array like it."""
    hidden = int(self.expansion * x.shape[-1])
    y = _filter(self, "conv")(_dense(self, 2 * hidden, "expand")(x))
    a, b = jnp.split(y, 2, axis=-1)
    return _dense(self, x.shape[-1], "shrink")(exact_gelu(a) * b)


class Block(nn.Module):
  """x + attention(norm(x)), then x + feed_forward(norm(x)).

  With `scan` the first branch is fuse([attention(u); scan(u)]), u = norm(x): a
  path of channels and one of places. That there are two such paths that are
  fused is the paper's (MTAIR, arXiv 2412.15845); how they are, and that they
  share a norm, is OUR RECONSTRUCTION, since its code lacks the block.

  Attributes:
    heads: heads of the attention.
    expansion: of the feed-forward layer.
    scan: makes an `ImageScan`, given a name; None for Restormer's block.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  heads: int
  expansion: float
  scan: functools.partial | None = None
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to an array like it."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    u = LayerNorm(name="attention_norm", **dtypes)(x)
    y = ChannelAttention(self.heads, name="attention", **dtypes)(u)
    if self.scan is not None:
      y = jnp.concatenate([y, self.scan(name="scan")(u)], axis=-1)
      y = _dense(self, x.shape[-1], "fuse")(y)
    x = x + y
    u = LayerNorm(name="ffn_norm", **dtypes)(x)
    x = x + GatedFeedForward(self.expansion, name="ffn", **dtypes)(u)
    return taps.tap(self, "hidden_state", x)


class Level(nn.Module):
  """Blocks of one resolution, one after the other.

  Attributes:
    block: makes a block, given a name.
    depth: how many there are.
  """

  block: functools.partial
  depth: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.depth):
      x = self.block(name=f"block_{i}")(x)
    return x


class Prompt(nn.Module):
  """An image of prompts that an image chooses (PromptIR, arXiv 2306.13090).

  conv3x3(resize(sum_i w_i prompts_i)), w = softmax(choice(mean of the image)),
  section 3.1.1. It is resized bilinearly, without a filter before.

  Attributes:
    width: channels of a prompt.
    side: height and width of a prompt, those of the image in training.
    length: number of prompts.
    dtype: dtype of the computation; the choice is float32.
    param_dtype: dtype of the parameters.
  """

  width: int
  side: int
  length: int = 5
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to [..., width]."""
    prompts = self.param(
      "prompts",
      # As PyTorch's `rand`.
      nn.initializers.uniform(1.0),
      (self.length, self.side, self.side, self.width),
      self.param_dtype,
    )
    mean = x.astype(jnp.float32).mean((1, 2))
    choice = layers.Dense(
      self.length,
      kernel_init=KERNEL_INIT,
      param_dtype=self.param_dtype,
      name="choice",
    )(mean)
    weights = nn.softmax(choice).astype(self.dtype)
    y = jnp.einsum("bl,lhwp->bhwp", weights, prompts.astype(self.dtype))
    shape = (*x.shape[:3], self.width)
    y = jax.image.resize(y, shape, "bilinear", antialias=False)
    return _convolution(self, self.width, "conv")(y)


class PromptBlock(nn.Module):
  """x + gate * attention(norm(x), prompt): prompts in channels and in space.

  The paper mixes prompts into features by cross-attention in both (S-C PB of
  MTAIR, arXiv 2412.15845). OUR RECONSTRUCTION, since its code lacks the block:
  queries are of the image, keys and values of its prompt, channels attend to
  channels, and gate = sigmoid(dense([norm(x); prompt])), one number a place,
  says where.

  Attributes:
    prompt: makes a `Prompt`, given a name.
    heads: heads of the attention.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  prompt: functools.partial
  heads: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to an array like it."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    prompt = _dense(self, x.shape[-1], "project")(self.prompt(name="prompt")(x))
    u = LayerNorm(name="norm", **dtypes)(x)
    gate = layers.Dense(1, kernel_init=KERNEL_INIT, name="gate", **dtypes)(
      jnp.concatenate([u, prompt], axis=-1)
    )
    gate = taps.tap(self, "gate", nn.sigmoid(gate))
    y = ChannelAttention(self.heads, name="attention", **dtypes)(u, prompt)
    return x + gate * y


class Downsample(nn.Module):
  """Halves the sides and doubles the channels: conv3x3, then 2 x 2 pixels."""

  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return pixel_unshuffle(_convolution(self, x.shape[-1] // 2, "conv")(x), 2)


class Upsample(nn.Module):
  """Doubles the sides and halves the channels: conv3x3, then 2 x 2 pixels."""

  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return pixel_shuffle(_convolution(self, 2 * x.shape[-1], "conv")(x), 2)


def _options(owner: nn.Module, name: str) -> dict:
  return {
    "use_bias": False,
    "kernel_init": KERNEL_INIT,
    "dtype": owner.dtype,
    "param_dtype": owner.param_dtype,
    "name": name,
  }


def _dense(owner: nn.Module, width: int, name: str) -> nn.Module:
  return layers.Dense(width, **_options(owner, name))


def _filter(owner: nn.Module, name: str) -> nn.Module:
  return layers.DepthwiseConv(3, **_options(owner, name))


def _convolution(owner: nn.Module, width: int, name: str) -> nn.Module:
  return layers.Conv(width, (3, 3), padding=1, **_options(owner, name))
