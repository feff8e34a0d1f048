"""Probes that weigh or change the tokens before they are averaged.

Each is the module that efficient probing's authors compare with, arXiv
2506.10178; see `models.probes.queries`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, lina_layers, taps
from models.feed_forward import exact_gelu
from models.probes.parts import Grid, Pooling, batch_norm, from_heads, to_heads

SELF_ATTENTIONS = ("none", "map", "both")
# He's normal by what goes out, as the authors' code has it.
_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class SelfAttentionPooling(Pooling):
  """Base of those with self-attention among all tokens."""

  def self_attend(self, x, heads, name) -> jax.Array:
    """Multi-head attention of tokens [B, N, D]; queries have no biases."""
    width = x.shape[-1]
    qkv = self.dense(x, 3 * width, f"{name}_qkv", use_bias=False)
    q, k, v = (to_heads(y, heads) for y in jnp.split(qkv, 3, axis=-1))
    y = from_heads(self.attend(q, k, v))
    return self.dense(y, width, f"{name}_out")


class AbmilpPool(SelfAttentionPooling):
  """AbMILP (arXiv 1802.04712, 2412.03215): a small network weighs each token.

  Its weights, the tap "token_weights", are [batch, tokens].

  Attributes:
    self_attention: what sees the tokens after self-attention with one head:
      "none" has no such attention, "map" the network, "both" the mean too.
    depth: layers of the network, with tanh between.
  """

  self_attention: str = "both"
  depth: int = 2

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid, train
    if self.self_attention not in SELF_ATTENTIONS:
      raise ValueError(
        f"self_attention is {self.self_attention!r}; it must be one of "
        f"{SELF_ATTENTIONS}"
      )
    mixed = x
    if self.self_attention != "none":
      mixed = self.self_attend(x, 1, "attention")
    y = mixed
    for i in range(self.depth - 1):
      y = jnp.tanh(self.dense(y, x.shape[-1], f"hidden_{i}"))
    scores = self.dense(y, 1, "score")[..., 0].astype(jnp.float32)
    weights = taps.tap(self, "token_weights", nn.softmax(scores))
    values = mixed if self.self_attention == "both" else x
    pooled = jnp.einsum(
      "bn,bnd->bd", weights, values, preferred_element_type=jnp.float32
    )
    return pooled.astype(x.dtype)


class DinoBlockPool(SelfAttentionPooling):
  """A block of DINOv2's transformer (arXiv 2304.07193), then the mean.

  Attributes:
    heads: attention heads.
  """

  heads: int = 8

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid, train
    width = x.shape[-1]
    y = self.norm(x, "attention_norm")
    x = x + self.self_attend(y, self.heads, "attention")
    mlp = lina_layers.Mlp(
      4 * width, width, exact_gelu, name="mlp", **self.dtypes
    )
    return (x + mlp(self.norm(x, "mlp_norm"))).mean(1)


class CbamPool(Pooling):
  """CBAM (arXiv 1807.06521): gates of channels, then of places, and a residual.

  Attributes:
    reduction: width of the tokens over that of the channels' gate within.
    kernel_size: side of the convolution that makes the gate of places.
  """

  reduction: int = 16
  kernel_size: int = 7

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D].

    Raises:
      ValueError: with a class token, which has no place.
    """
    if grid is None:
      raise ValueError("probe 'cbam_all': CBAM takes tokens of a map only")
    y = x * nn.sigmoid(self._channel_gate(x))[:, None]
    places = jnp.stack([y.mean(-1), y.max(-1)], axis=-1)
    places = layers.Conv(
      1,
      (self.kernel_size, self.kernel_size),
      use_bias=False,
      kernel_init=lina_layers.uniform(2 * self.kernel_size**2),
      name="conv",
      **self.dtypes,
    )(places.reshape(len(x), *grid, 2))
    places = batch_norm(1e-5, train, name="norm", **self.dtypes)(places)
    y *= nn.sigmoid(places.reshape(*x.shape[:2], 1))
    return nn.relu(y + x).mean(1)

  def _channel_gate(self, x) -> jax.Array:
    """Maps [B, N, D] to [B, D], of the mean and of the maximum."""
    width = x.shape[-1]
    narrow = max(math.floor(width / self.reduction + 0.5), 1)
    # Both at once, as the layers are the same.
    y = jnp.stack([x.mean(1), x.max(1)], axis=1)
    y = nn.relu(self.dense(y, narrow, "reduce", use_bias=False))
    return self.dense(y, width, "expand", use_bias=False).sum(1)


class DolgPool(Pooling):
  """DOLG's local branch (arXiv 2108.02927): weights times unit vectors.

  The weights, the tap "token_weights", are [batch, tokens], from 0 on.
  """

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid
    width = x.shape[-1]
    inits = {"kernel_init": _FAN_OUT, "bias_init": lina_layers.uniform(width)}
    # 1 x 1 convolutions.
    x = layers.Dense(width, name="conv_0", **inits, **self.dtypes)(x)
    x = batch_norm(1e-5, train, name="norm", **self.dtypes)(x)
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # PyTorch's bound of the norm, 1e-12.
    unit = x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    y = nn.relu(x).astype(self.dtype)
    y = layers.Dense(1, name="conv_1", **inits, **self.dtypes)(y)[..., 0]
    weights = nn.softplus(y.astype(jnp.float32))
    weights = taps.tap(self, "token_weights", weights)
    return (weights[..., None] * unit).mean(1).astype(self.dtype)
