"""ViT, MLP-Mixer and NiNformer: blocks on patches of an image, as one model.

"An Image is Worth 16x16 Words" (arXiv 2010.11929), "MLP-Mixer" (2105.01601) and
"NiNformer: A Network in Network Transformer with Token Mixing Generated Gating
Function" (2403.02411) differ in what mixes the tokens, `mixer`, and in values
of the other fields. The tests hold the first two to timm's, and the third to a
second statement of its released code.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import (
  layers,
  lina_layers,
  normalization,
  patch_layers,
  registry,
  taps,
)
from models.backbone import Backbone

Dtype = layers.Dtype

POSITIONS = ("learned", "none")


class PatchMixer(Backbone):
  """A network on patches, from an image to logits or to maps of tokens.

  Attributes:
    patch_size: side of a patch in pixels.
    width: channels of a token.
    depth: number of blocks.
    mixer: what mixes tokens, a key of `patch_layers.MIXERS`: "attention", "mlp"
      or "ninformer".
    heads: of attention.
    hidden_width: channels within feed-forward layers, those of NiNformer's
      inner blocks too.
    token_hidden: channels within the layers along tokens, of mixers that have
      them.
    shared_norm: whether both norms of a block are one.
    class_token: whether there is a token more, of which logits are made; they
      are made of the mean over tokens otherwise.
    position: "learned", a vector of each token that is added, or "none".
    position_scale: standard deviation that those vectors begin with.
    patch_bias: whether the layer that embeds patches has a bias.
    embedding_norm: whether embedded tokens are normalised before the first
      block, as in CLIP.
    activation: of feed-forward layers, a key of `patch_layers.ACTIVATIONS`.
    last_norm: whether tokens are normalised after the last block.
    normalized_features: whether `features` gives final tokens after that norm;
      probes of masked autoencoders read them before it.
    epsilon: of the norms.
    weight_init: how weights begin, a key of `patch_layers.INITS`; that of
      patches as PyTorch's in any case.
    dropout_rate: see `patch_layers`; also of the tokens before the first block,
      where positions are learned.
    image_size: side of the images that positions or layers along tokens are
      for. Other sizes fit attention only, for which stored positions are
      interpolated at run time.
    stochastic_depth_rate: probability of dropping the residual branches of the
      last block; it grows linearly from 0.
    num_classes: number of logits; if 0, `model.apply` gives what they would be
      made of.
    attention_implementation: see `attention.kernels.dispatch`.
  """

  patch_size: int = 16
  width: int = 768
  depth: int = 12
  mixer: str = "attention"
  heads: int = 12
  hidden_width: int = 3072
  token_hidden: int = 0
  shared_norm: bool = False
  class_token: bool = True
  position: str = "learned"
  position_scale: float = 0.02
  patch_bias: bool = True
  embedding_norm: bool = False
  activation: str = "gelu"
  last_norm: bool = True
  normalized_features: bool = True
  epsilon: float = 1e-6
  weight_init: str = "normal"
  dropout_rate: float = 0.0
  image_size: int = 224
  attention_implementation: str = "auto"

  def setup(self):
    self._check_fields()
    dtypes = self.dtypes
    side = self.image_size // self.patch_size
    self.embed = Embedding(
      self.width,
      self.patch_size,
      side,
      self.class_token,
      self.position == "learned",
      self.position_scale,
      self.patch_bias,
      self.dropout_rate,
      **dtypes,
    )
    norm = functools.partial(
      normalization.LayerNorm, epsilon=self.epsilon, **dtypes
    )
    if self.embedding_norm:
      self.embed_norm = norm()
    self.block = self._blocks()
    if self.last_norm:
      self.final_norm = norm()
    self.head = Head(self.num_classes, self.weight_init, **dtypes)

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns maps [batch, rows, columns, width] of embedded and final tokens.

    Between the two stands the final class token, [batch, 1, 1, width], if there
    is one. Final tokens are normalised, if the model does so and
    `normalized_features` leaves it.
    """
    self._check_images(x)
    grid = (x.shape[1] // self.patch_size, x.shape[2] // self.patch_size)
    x = first = self._embedded(x, train)
    for block in self.block:
      x = block(x, train)
    if self.last_norm:
      # Always there, so that a trunk has the parameters of a classifier.
      normalized = self.final_norm(x)
      if self.normalized_features:
        x = taps.tap(self, "final_state", normalized)
    # Pairs of what stands before the patches, and the patches.
    (_, begin), (token, end) = (self._split(y, grid) for y in (first, x))
    return [begin, token, end] if self.class_token else [begin, end]

  def hidden_maps(
    self, x: jax.Array, *, train: bool = False
  ) -> list[jax.Array]:
    """Returns maps [batch, rows, columns, width] of tokens at every depth.

    The embedded tokens, as the first block reads them, and those after each
    block, not normalised, without the class token: what is read of a ViT of
    which there are no logits.
    """
    self._check_images(x)
    grid = (x.shape[1] // self.patch_size, x.shape[2] // self.patch_size)
    states = [self._embedded(x, train)]
    for block in self.block:
      states.append(block(states[-1], train))
    return [self._split(state, grid)[1] for state in states]

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    del train
    x = maps[-2 if self.class_token else -1]
    if self.last_norm and not self.normalized_features:
      x = self.final_norm(x)
    return self.head(x.mean((1, 2)))

  @property
  def size_multiple(self) -> int:
    """A side of images that the model takes, as its multiples."""
    return self.image_size if self._is_of_one_size else self.patch_size

  @property
  def _is_of_one_size(self) -> bool:
    return patch_layers.needs(self.mixer, "token_hidden")

  def _embedded(self, x, train):
    x = self.embed(x, train)
    return self.embed_norm(x) if self.embedding_norm else x

  def _split(self, x, grid):
    tokens = int(self.class_token)
    token, patches = x[:, :tokens, None], x[:, tokens:]
    return token, patches.reshape(len(x), *grid, self.width)

  def _blocks(self) -> list[nn.Module]:
    shared = {
      "weight_init": self.weight_init,
      "dropout_rate": self.dropout_rate,
      "activation": self.activation,
      "hidden_width": self.hidden_width,
      "epsilon": self.epsilon,
      **self.dtypes,
    }
    mixer = patch_layers.maker(
      self.mixer,
      {
        **shared,
        "heads": self.heads,
        "token_hidden": self.token_hidden,
        "implementation": self.attention_implementation,
      },
    )
    block = patch_layers.Block
    if self.remat:
      block = nn.remat(block, static_argnums=(2,))
    (rates,) = layers.linear_rates(self.stochastic_depth_rate, (self.depth,))
    return [
      block(
        mixer=mixer,
        shared_norm=self.shared_norm,
        stochastic_depth_rate=rate,
        **shared,
      )
      for rate in rates
    ]

  def _check_fields(self) -> None:
    for field, known in (
      ("mixer", patch_layers.MIXERS),
      ("weight_init", patch_layers.INITS),
      ("position", POSITIONS),
      ("activation", patch_layers.ACTIVATIONS),
    ):
      if getattr(self, field) not in known:
        raise registry.unknown(field, getattr(self, field), known)
    if self.patch_size < 1 or self.image_size % self.patch_size:
      raise ValueError(
        f"image_size is {self.image_size}; it must be a multiple of patch_size "
        f"{self.patch_size}"
      )
    if patch_layers.needs(self.mixer, "heads") and (
      self.heads < 1 or self.width % self.heads
    ):
      raise ValueError(
        f"heads is {self.heads}, which does not divide width {self.width}"
      )
    if self._is_of_one_size and self.token_hidden < 1:
      raise ValueError(
        f"token_hidden is {self.token_hidden}; mixer={self.mixer!r} needs a "
        "positive number of channels within its layers along tokens"
      )

  def _check_images(self, x: jax.Array) -> None:
    layers.check_images(x)
    height, width = x.shape[1:3]
    side = self.image_size
    if self._is_of_one_size and (height, width) != (side, side):
      raise ValueError(
        f"x is {height} x {width}; mixer={self.mixer!r} takes images of "
        f"image_size={side} only, as its layers have a weight for each token"
      )
    if height % self.patch_size or width % self.patch_size:
      raise ValueError(
        f"x is {height} x {width}; height and width must be multiples of "
        f"patch_size={self.patch_size}"
      )


class Embedding(nn.Module):
  """Patches as tokens, row by row, behind the class token if there is one."""

  width: int
  patch_size: int
  side: int
  class_token: bool
  positions: bool
  position_scale: float
  bias: bool
  dropout_rate: float
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [B, H, W, C] to [B, tokens, D]."""
    init = lina_layers.uniform(self.patch_size**2 * x.shape[-1])
    x = layers.Conv(
      self.width,
      (self.patch_size,) * 2,
      strides=(self.patch_size,) * 2,
      padding="VALID",
      kernel_init=init,
      bias_init=init,
      use_bias=self.bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="conv",
    )(x)
    grid = x.shape[1:3]
    x = x.reshape(len(x), -1, self.width)
    normal = nn.initializers.normal
    if self.class_token:
      token = self.param(
        "class_token", normal(1e-6), (self.width,), self.param_dtype
      )
      token = jnp.broadcast_to(token.astype(x.dtype), x[:, :1].shape)
      x = jnp.concatenate([token, x], axis=1)
    if self.positions:
      tokens = self.side**2 + self.class_token
      table = self.param(
        "position",
        normal(self.position_scale),
        (tokens, self.width),
        self.param_dtype,
      )
      x += _resized(table, grid)[None].astype(x.dtype)
      x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    return taps.tap(self, "hidden_state", x)


class Head(nn.Module):
  """Logits of what stands for an image."""

  num_classes: int
  weight_init: str
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, D] to float32 [B, classes], or to itself without classes."""
    if self.num_classes:
      kernel_init, bias_init = patch_layers.INITS[self.weight_init](x.shape[-1])
      x = layers.Dense(
        self.num_classes,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name="logits",
      )(x)
    return x.astype(jnp.float32)


def _resized(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Interpolates positions [tokens, D] of a square for another grid."""
  side = math.isqrt(len(table))
  if grid == (side, side):
    return table
  first = len(table) - side**2  # Of the class token, if there is one.
  square = table[first:].reshape(side, side, -1)
  square = jax.image.resize(square, (*grid, table.shape[1]), "bicubic")
  return jnp.concatenate([table[:first], square.reshape(-1, table.shape[1])])


def _vit(width: int, heads: int, depth: int = 12) -> dict[str, Any]:
  return {
    "width": width,
    "heads": heads,
    "depth": depth,
    "hidden_width": 4 * width,
  }


def _mixer(width: int, depth: int) -> dict[str, Any]:
  return {
    "width": width,
    "depth": depth,
    "hidden_width": 4 * width,
    "token_hidden": width // 2,
    "mixer": "mlp",
    "class_token": False,
    "position": "none",
    "weight_init": "xavier",
  }


KIND = "image"
# Heads, and hidden channels of feed-forward layers.
SHARDING_RULES = (
  ("block_[0-9]+/mixer/qkv/kernel", (None, None, "model", None)),
  ("block_[0-9]+/mixer/qkv/bias", (None, "model", None)),
  ("block_[0-9]+/mixer/out/kernel", ("model", None, None)),
  ("block_[0-9]+/.*ffn/expand/kernel", (None, "model")),
  ("block_[0-9]+/.*ffn/expand/bias", ("model",)),
  ("block_[0-9]+/.*ffn/shrink/kernel", ("model", None)),
)
# Those of images of 224 pixels have patches of 16; timm's vit_*_patch16_224 and
# mixer_*16_224. NiNformer's is the one of its script, for CIFAR-10.
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  "vit_tiny_16_224": (PatchMixer, _vit(192, 3)),
  "vit_small_16_224": (PatchMixer, _vit(384, 6)),
  "vit_base_16_224": (PatchMixer, _vit(768, 12)),
  "vit_large_16_224": (PatchMixer, _vit(1024, 16, depth=24)),
  "vit_huge_14_224": (
    PatchMixer,
    {**_vit(1280, 16, depth=32), "patch_size": 14},
  ),
  "mixer_small_16_224": (PatchMixer, _mixer(512, 8)),
  "mixer_base_16_224": (PatchMixer, _mixer(768, 12)),
  "mixer_large_16_224": (PatchMixer, _mixer(1024, 24)),
  "ninformer_4_32": (
    PatchMixer,
    {
      "patch_size": 4,
      "width": 256,
      "depth": 4,
      "mixer": "ninformer",
      "hidden_width": 512,
      "token_hidden": 512,
      "shared_norm": True,
      "class_token": False,
      "position": "none",
      "last_norm": False,
      "epsilon": 1e-5,
      "weight_init": "pytorch",
      "dropout_rate": 0.5,
      "image_size": 32,
      "num_classes": 10,
    },
  ),
}
IMAGE_SIZES = {
  name: fields.get("image_size", 224) for name, (_, fields) in VARIANTS.items()
}
