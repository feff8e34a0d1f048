"""A diffusion transformer of images and videos: DiT and what came of it.

"Scalable Diffusion Models with Transformers" (arXiv 2212.09748): patches of a
noisy image are tokens, and time and class act on every layer by adaptive norms
whose gates begin at zero. Here conditions may be tokens too, positions rotary,
and what mixes tokens comes by name (`models.grid_mixers`, `models.attends`).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from attention.kernels.flash_plan import ATTENDED
from models import (
  diffusion_checks,
  diffusion_layers,
  grid_mixers,
  layers,
  lina_layers,
  positions,
  taps,
)
from models.attends import Layout, scaling
from models.flow_head import time_features

KIND = "diffusion"
# Heads, and hidden channels of all feed-forward layers.
SHARDING_RULES = (
  (
    "(cross_)?attention/(text_)?(query|key|value)/kernel",
    (None, "model", None),
  ),
  ("(cross_)?attention/(text_)?(query|key|value)/bias", ("model", None)),
  # [heads and their channels, width].
  ("(cross_)?attention/(text_)?out/kernel", ("model", None)),
  ("(text_)?mlp/expand/kernel", (None, "model")),
  ("(text_)?mlp/expand/bias", ("model",)),
  ("(text_)?mlp/shrink/kernel", ("model", None)),
)
_XAVIER = nn.initializers.xavier_uniform()


class DiffusionTransformer(taps.Tapped):
  """From noisy images, times and conditions to noise, velocity or image.

  Attributes:
    sample_shape: sides of what it is made for, without batch and channels: (32,
      32) for images, (frames, height, width) for videos. Others work too.
    channels: channels of it.
    patch_size: sides of a token, one for each of `sample_shape`.
    width: channels of a token within the model.
    depth: number of blocks.
    heads: heads of each attention.
    mlp_ratio: hidden channels of the feed-forward layers, in widths.
    num_classes: number of classes; the index `num_classes` is for none. 0 for a
      model without classes.
    label_tokens: classes of an example. Adaptive norms take the sum of their
      embeddings, so that the order is lost; as tokens they are told apart by
      what they hold, not by their order either.
    text_width: channels of a text's tokens, which takes the place of classes; 0
      for none.
    conditioning: where classes and texts act, beside the time, which is always
      in the adaptive norms. "adaptive": classes there too, as in DiT. "cross":
      a start token, then those of classes or text, by cross-attention behind
      each self-attention. "joint": the same tokens, behind those of the grid in
      the same attention, with weights of their own (MMDiT).
    position_encoding: "sincos", a fixed table that is added to the tokens,
      computed for the size at hand, or "rotary", see `positions.rotate_grid`.
    rotary_base: base of the frequencies of rotary positions.
    learned_variance: whether there are channels for the variance, behind those
      of the prediction (arXiv 2102.09672).
    mixer: a key of `grid_mixers.GRID_MIXERS`.
    mixer_options: fields of the mixer.
    attend: a key of `attends.ATTENDS`, of self-attention.
    attend_options: its options.
    cross_attend: the same of cross-attention.
    cross_attend_options: its options.
    dense_layers: blocks, the first ones, that have attend="full" whatever
      `attend` is, scaled alike.
    guided_channels: channels, the first ones, that guidance acts on: 3 in the
      code of DiT, of four latents; all if None. Samplers read it.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    remat: whether the backward pass computes each block again instead of
      keeping its activations; but for what attention gave, where a kernel did.
    dtype: dtype of the computation; attention's scores and the last layer are
      float32.
    param_dtype: dtype of the parameters.
  """

  sample_shape: tuple[int, ...] = (32, 32)
  channels: int = 4
  patch_size: tuple[int, ...] = (2, 2)
  width: int = 384
  depth: int = 12
  heads: int = 6
  mlp_ratio: float = 4.0
  num_classes: int = 1000
  label_tokens: int = 1
  text_width: int = 0
  conditioning: str = "adaptive"
  position_encoding: str = "sincos"
  rotary_base: float = 10000.0
  learned_variance: bool = False
  mixer: str = "attention"
  mixer_options: Mapping[str, Any] = FrozenDict()
  attend: str = "full"
  attend_options: Mapping[str, Any] = FrozenDict()
  cross_attend: str = "full"
  cross_attend_options: Mapping[str, Any] = FrozenDict()
  dense_layers: int = 0
  guided_channels: int | None = None
  implementation: str = "auto"
  remat: bool = False
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    time: jax.Array,
    label: jax.Array | None = None,
    text: jax.Array | None = None,
    text_length: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Returns the prediction, float32 [batch, *shape, channels].

    Args:
      x: noisy images or videos [batch, *shape, channels].
      time: floats [batch], from 0 (clean) to 1000 (noise alone).
      label: classes, integers [batch] or [batch, label_tokens]; none of them if
        None.
      text: what an encoder made of a text, [batch, tokens, text_width]; none if
        None.
      text_length: integers [batch], how many of its tokens are no padding,
        which may hold anything; 0 stands for no text. All if None.
      train: whether it trains. Nothing here depends on it.

    With `learned_variance` twice the channels: first those of the prediction.

    Raises:
      ValueError: for fields that do not fit each other, for inputs of another
        shape or dtype, for sides that the patches do not divide, or, where the
        values are known, for a class that does not exist.
    """
    del train
    diffusion_checks.check_fields(self)
    diffusion_checks.check_inputs(self, x, time, label, text, text_length)
    grid = self.token_grid(x.shape[1:-1])
    tokens, lengths = None, None
    condition = self._time_embedding(time)
    if self.conditioning == "adaptive":
      condition = condition + self._label_embedding(label, len(x)).sum(1)
    else:
      tokens, lengths = self._condition_tokens(label, text, text_length, len(x))
    if self.conditioning == "joint" and lengths is not None:
      lengths = lengths + math.prod(grid)
    x = diffusion_layers.to_patches(x, self.patch_size).astype(self.dtype)
    x = self._dense("patch_embed", x)
    if self.position_encoding == "sincos":
      table = positions.sincos_grid(grid, self.width)
      x = x + table.astype(self.dtype)[None]
    condition = nn.silu(condition)
    for i in range(self.depth):
      x, tokens = self._block(i, grid, tokens)(x, tokens, condition, lengths)
    x = diffusion_layers.FinalLayer(
      math.prod(self.patch_size) * self.channels * (1 + self.learned_variance),
      name="final",
      **self._dtypes,
    )(x, condition)
    return diffusion_layers.from_patches(x, grid, self.patch_size)

  @nn.nowrap
  def token_grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sides in tokens of what has these sides."""
    return tuple(n // p for n, p in zip(shape, self.patch_size, strict=True))

  @nn.nowrap
  def example_inputs(self) -> dict[str, Any]:
    """Returns arguments of the call, of one example, to initialise with."""
    inputs = {
      "x": jnp.zeros((1, *self.sample_shape, self.channels)),
      "time": jnp.zeros((1,)),
    }
    if self.text_width:
      # In the order of the call.
      return inputs | {
        "label": None,
        "text": jnp.zeros((1, 1, self.text_width)),
      }
    if self.num_classes:
      inputs["label"] = jnp.zeros((1, self.label_tokens), jnp.int32)
    return inputs

  @property
  def _dtypes(self) -> dict[str, layers.Dtype]:
    return {"dtype": self.dtype, "param_dtype": self.param_dtype}

  def _dense(self, name: str, x: jax.Array) -> jax.Array:
    dense = layers.Dense(
      self.width, kernel_init=_XAVIER, name=name, **self._dtypes
    )
    return dense(x)

  def _time_embedding(self, time: jax.Array) -> jax.Array:
    """Maps [batch] to [batch, width]."""
    embed = lina_layers.Mlp(
      self.width,
      self.width,
      kernel_init=nn.initializers.normal(0.02),
      bias_init=nn.initializers.zeros,
      name="time_embed",
      **self._dtypes,
    )
    return embed(time_features(time, self.dtype))

  def _label_embedding(self, label: jax.Array | None, batch: int) -> jax.Array:
    """Maps classes to [batch, label_tokens, width]; none where there are none.

    A model without classes has no tokens of them.
    """
    if not self.num_classes:
      return jnp.zeros((batch, 0, self.width), self.dtype)
    shape = batch, self.label_tokens
    if label is None:
      label = jnp.full(shape, self.num_classes)
    return diffusion_layers.LabelEmbedding(
      self.num_classes, self.width, name="label_embed", **self._dtypes
    )(label.reshape(shape))

  def _condition_tokens(self, label, text, text_length, batch):
    """Returns [batch, tokens, width], and how many are real, or None."""
    if self.text_width:
      if text is None:
        text = jnp.zeros((batch, 0, self.text_width), self.dtype)
      if text_length is not None:
        real = jnp.arange(text.shape[1])[None] < text_length[:, None]
        text = jnp.where(real[..., None], text, 0)
      tokens = self._dense("text_embed", text.astype(self.dtype))
    else:
      tokens = self._label_embedding(label, batch)
    tokens = diffusion_layers.ConditionTokens(
      self.width, name="condition", **self._dtypes
    )(tokens)
    return tokens, None if text_length is None else 1 + text_length

  def _block(self, i: int, grid: tuple[int, ...], tokens: jax.Array | None):
    """Returns block number `i`."""
    known = {
      "heads": self.heads,
      "implementation": self.implementation,
      **self._dtypes,
    }
    joint = self.conditioning == "joint"
    last = i == self.depth - 1
    attend, options = self.attend, self.attend_options
    if i < self.dense_layers:
      scale_by = options.get("scale_by")
      attend, options = "full", {}
      if scale_by in scaling.SCALES:
        options = {"scale_by": scale_by}
    offered = known | {
      "attend": attend,
      "attend_options": options,
      "rotary_base": self.rotary_base * (self.position_encoding == "rotary"),
      "text_out": not last,
    }
    layout = functools.partial(Layout, grid, self.token_grid(self.sample_shape))
    block, fields = diffusion_layers.Block, {}
    if joint:
      block, fields = diffusion_layers.JointBlock, {"last": last}
    elif self.conditioning == "cross":
      cross = functools.partial(
        grid_mixers.CrossAttention,
        attend=self.cross_attend,
        attend_options=self.cross_attend_options,
        out_init=nn.initializers.zeros,
        **known,
      )
      fields = {"cross": cross, "cross_layout": layout(tokens.shape[1])}
    if self.remat:
      keep = jax.checkpoint_policies.save_only_these_names(ATTENDED)
      block = nn.remat(block, policy=keep)
    return block(
      grid_mixers.maker(self.mixer, self.mixer_options, offered),
      layout(tokens.shape[1] if joint else 0),
      int(self.width * self.mlp_ratio),
      name=f"block_{i}",
      **fields,
      **self._dtypes,
    )


_SIZES = {
  "s": {"width": 384, "depth": 12, "heads": 6},
  "b": {"width": 768, "depth": 12, "heads": 12},
  "l": {"width": 1024, "depth": 24, "heads": 16},
  "xl": {"width": 1152, "depth": 28, "heads": 16},
}
# The latents of images of 256 x 256 pixels.
VARIANTS = {
  f"dit_{size}_{patch}": (
    DiffusionTransformer,
    {
      **fields,
      "patch_size": (patch, patch),
      "learned_variance": True,
      "guided_channels": 3,
    },
  )
  for size, fields in _SIZES.items()
  for patch in (2, 4, 8)
}
