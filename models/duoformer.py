"""DuoFormer: attention among the scales of a patch, then among patches.

"DuoFormer: Leveraging Hierarchical Representations by Local and Global
Attention Vision Transformer" (arXiv 2506.12982), after the authors' released
model. A residual network gives maps at strides 4, 8, 16 and 32. A patch is what
one pixel of the last of them covers, and its tokens are the pixels of the
chosen maps that lie in it.

Trained weights of the released model fit with `released=True`: it lists the
four tokens of stage 2 column by column, and its position table was learned so.
Its ResNet-18 model of 2 scales takes stages 2 and 1 instead of 3 and 2
(`duoformer_r18_2s_released`), that of 3 scales stages 2, 1 and 0.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from models import (
  duoformer_tokens,
  layers,
  normalization,
  open_attention,
  registry,
  taps,
)
from models.backbone import Backbone

Dtype = layers.Dtype

STRIDE = 32
SCALE_TOKENS = ("random", "channel", "none")
PATCH_BLOCKS = ("attn_only", "vit")

# PyTorch's truncated normal is cut at 2, so many deviations away that nothing
# is cut.
KERNEL_INIT = nn.initializers.normal(0.02)
LayerNorm = functools.partial(normalization.LayerNorm, epsilon=1e-6)
gelu = functools.partial(nn.gelu, approximate=False)


class DuoFormer(Backbone):
  """DuoFormer, from an image to logits; `features` is the trunk's pyramid.

  Attributes:
    backbone: name of the model that is the trunk; it needs feature maps at
      strides 4, 8, 16 and 32.
    backbone_options: fields of the trunk and their values.
    stages: which of these maps become tokens, 0 to 3, coarse to fine; stage i
      gives 4 ** (3 - i) tokens a patch.
    scale_token: what stands for a patch after the scale blocks: "random", a
      learned vector; "channel", made of all four maps by convolutions; "none",
      the mean of the patch's tokens.
    width: channels of a token.
    heads: attention heads; they divide `width`.
    scale_depth: blocks of attention within a patch.
    patch_depth: layers of attention among patches; if 0, there is no class
      token, and the head takes the mean over patches.
    expansion: hidden width over width, in feed-forward layers.
    patch_block: layers among patches, "attn_only", attention without residual,
      normalisation and feed-forward layer as released, or "vit", the blocks
      that are within patches too.
    apply_final_norm: whether the logits see the head's normalisation. The
      released model computes it and uses what it was computed of; its
      parameters are there in any case.
    image_size: side of the images that the stored patch positions are for; for
      others they are interpolated at run time.
    released: whether tokens of stage 2 are listed column by column, as the
      positions in the authors' weights want.
    stochastic_depth_rate: probability that the residual branches of the block
      after the last one would be dropped; it grows linearly from 0.
    num_classes: number of logits; if 0, `model.apply` gives what they are made
      of.
    attention_implementation: which implementation of the attention runs, see
      `attention.kernels.dispatch`.
  """

  backbone: str = "resnet50"
  backbone_options: Mapping[str, Any] = FrozenDict()
  stages: tuple[int, ...] = (3, 2)
  scale_token: str = "random"
  width: int = 768
  heads: int = 12
  scale_depth: int = 12
  patch_depth: int = 12
  expansion: int = 4
  patch_block: str = "attn_only"
  apply_final_norm: bool = False
  image_size: int = 224
  released: bool = False
  attention_implementation: str = "auto"

  def __post_init__(self):
    # Hashable, so that a model can be a static argument of jit.
    self.backbone_options = FrozenDict(self.backbone_options)
    super().__post_init__()

  def setup(self):
    self._check_fields()
    dtypes = self.dtypes
    trunk = {"num_classes": 0, "remat": self.remat, **dtypes}
    self.trunk = registry.create(
      self.backbone, **{**trunk, **self.backbone_options}
    )
    self.scale_tokens = duoformer_tokens.ScaleTokens(
      self.width, self.stages, self.scale_token, self.released, **dtypes
    )
    blocks = self._blocks()
    self.scale_block = blocks[: self.scale_depth]
    if self.patch_depth:
      side = self.image_size // STRIDE
      self.patch_tokens = duoformer_tokens.PatchTokens(side, self.param_dtype)
      self.patch_layer = blocks[self.scale_depth :]
    self.head = Head(self.num_classes, self.apply_final_norm, **dtypes)

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns the feature maps of the trunk: strides 2, 4, 8, 16, 32."""
    self._check_images(x)
    return self.trunk.features(x, train=train)

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    grid = maps[-1].shape[1:3]
    x = self.scale_tokens(maps[-4:], train)  # [B, patches, tokens, D]
    for block in self.scale_block:
      x = block(x, train)
    x = x.mean(2) if self.scale_token == "none" else x[:, :, 0]
    if not self.patch_depth:
      return self.head(x.mean(1))
    x = self.patch_tokens(x, grid)  # [B, 1 + patches, D]
    for layer in self.patch_layer:
      x = layer(x, train)
    return self.head(x[:, 0])

  @property
  def size_multiple(self) -> int:
    """The number of which height and width of images must be multiples."""
    return STRIDE

  def _check_fields(self) -> None:
    stages = tuple(self.stages)
    if not stages or list(stages) != sorted({*stages} & {*range(4)})[::-1]:
      raise ValueError(
        f"stages is {self.stages}; it must have some of 3, 2, 1, 0, in this "
        "order"
      )
    if self.scale_token not in SCALE_TOKENS:
      raise registry.unknown("scale token", self.scale_token, SCALE_TOKENS)
    if self.patch_block not in PATCH_BLOCKS:
      raise registry.unknown("patch block", self.patch_block, PATCH_BLOCKS)
    if self.width % self.heads:
      raise ValueError(
        f"heads is {self.heads}, which does not divide width {self.width}"
      )
    if self.image_size % STRIDE or self.image_size <= 0:
      raise ValueError(
        f"image_size is {self.image_size}; it must be a multiple of {STRIDE}"
      )

  def _check_images(self, x: jax.Array) -> None:
    layers.check_images(x)
    height, width = x.shape[1:3]
    if height % STRIDE or width % STRIDE:
      raise ValueError(
        f"x is {height} x {width}; height and width must be multiples of "
        f"{STRIDE}, as {self.image_size}"
      )

  def _blocks(self) -> list[nn.Module]:
    """Makes the scale blocks, and the patch layers behind them."""
    options = {
      "heads": self.heads,
      "implementation": self.attention_implementation,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    remat = nn.remat if self.remat else lambda cls, static_argnums: cls
    block = functools.partial(
      remat(Block, static_argnums=(2,)), self.expansion, **options
    )
    attend = functools.partial(
      remat(SelfAttention, static_argnums=(2,)), **options
    )
    depth = self.scale_depth + self.patch_depth
    rates = [self.stochastic_depth_rate * i / depth for i in range(depth)]
    blocks = [block(rate) for rate in rates]
    if self.patch_block == "attn_only":
      blocks[self.scale_depth :] = [attend() for _ in range(self.patch_depth)]
    return blocks


class Block(nn.Module):
  """Attention and feed-forward layer, each normalised before and residual."""

  expansion: int
  stochastic_depth_rate: float
  heads: int
  implementation: str
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    dense = functools.partial(layers.Dense, kernel_init=KERNEL_INIT, **dtypes)
    drop = functools.partial(layers.StochasticDepth, self.stochastic_depth_rate)
    y = LayerNorm(name="attention_norm", **dtypes)(x)
    y = SelfAttention(
      self.heads, self.implementation, name="attention", **dtypes
    )(y, train)
    x += drop()(y, train)
    y = LayerNorm(name="ffn_norm", **dtypes)(x)
    y = gelu(dense(self.expansion * x.shape[-1], name="expand")(y))
    y = dense(x.shape[-1], name="shrink")(y)
    return taps.tap(self, "hidden_state", x + drop()(y, train))


class SelfAttention(nn.Module):
  """Multi-head attention among the tokens of the last but one axis."""

  heads: int
  implementation: str
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [..., tokens, D] to [..., tokens, D]."""
    del train
    width = x.shape[-1]
    dense = functools.partial(
      layers.DenseGeneral,
      kernel_init=KERNEL_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    qkv = dense((3, self.heads, width // self.heads), name="qkv")(x)
    # Three times [..., tokens, heads, D / heads].
    q, k, v = (qkv[..., i, :, :] for i in range(3))
    out = open_attention.dot_product(
      self, q, k, v, implementation=self.implementation
    )
    return dense(width, axis=(-2, -1), name="out")(out)


class Head(nn.Module):
  """Normalisation that may go unused, and logits."""

  num_classes: int
  apply_norm: bool
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    normalized = LayerNorm(name="norm", **dtypes)(x)
    x = normalized if self.apply_norm else x
    if self.num_classes:
      dense = functools.partial(layers.Dense, kernel_init=KERNEL_INIT, **dtypes)
      x = dense(self.num_classes, name="logits")(x)
    return x.astype(jnp.float32)


def _variants() -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
  """Names both trunks with 2, 3 and 4 scales and both scale tokens."""
  variants = {}
  for depth in (18, 50):
    for scales in (2, 3, 4):
      name = f"duoformer_r{depth}_{scales}s"
      fields = {"backbone": f"resnet{depth}", "stages": (3, 2, 1, 0)[:scales]}
      variants[name] = (DuoFormer, fields)
      channel = {**fields, "scale_token": "channel"}
      variants[f"{name}_channel"] = (DuoFormer, channel)
  released = {"backbone": "resnet18", "stages": (2, 1), "released": True}
  variants["duoformer_r18_2s_released"] = (DuoFormer, released)
  return variants


KIND = "image"
VARIANTS = _variants()
IMAGE_SIZES = dict.fromkeys(VARIANTS, 224)
