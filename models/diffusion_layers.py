"""Layers of a diffusion transformer: adaptive norms, blocks, conditions."""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import feed_forward, layers, normalization, rows, taps
from models.attends import Layout

_XAVIER = nn.initializers.xavier_uniform()
_EMBEDDING = nn.initializers.normal(0.02)


class _Adaptive(nn.Module):
  """What blocks with adaptive norms share: adaLN-zero of DiT (2212.09748).

  Attributes:
    mixer: makes what mixes tokens, given a name; see `models.grid_mixers`.
    layout: where the tokens stand.
    mlp_width: hidden channels of the feed-forward layer.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  mixer: functools.partial
  layout: Layout
  mlp_width: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  def _statistics(self, name: str, condition: jax.Array, count: int):
    """Returns `count` times [batch, 1, width]; at first they are zero."""
    return modulation(
      name, condition, count, dtype=self.dtype, param_dtype=self.param_dtype
    )

  def _normed(self, name: str, x: jax.Array, shift, scale) -> jax.Array:
    return modulated(
      plain_norm(name, dtype=self.dtype, param_dtype=self.param_dtype)(x),
      shift,
      scale,
    )

  def _fed_forward(self, name: str, x, shift, scale, gate) -> jax.Array:
    """Adds what the feed-forward layer makes of a residual stream to it."""
    y = feed_forward.FeedForward(
      "gelu_tanh",
      self.mlp_width,
      True,
      _XAVIER,
      _XAVIER,
      self.dtype,
      self.param_dtype,
      name=name,
    )(self._normed(f"{name}_norm", x, shift, scale))
    return x + gate * taps.tap(self, f"{name}_output", rows.by_rows(y))


class Block(_Adaptive):
  """x + g mixer(norm(x)), then x + cross(norm(x)), x + g mlp(norm(x)).

  The norms before the mixer and the MLP, and the gates g, are of the condition;
  those before cross-attention have a scale and a bias.

  Attributes:
    cross: makes the cross-attention, given a name; None for none.
    cross_layout: where its tokens stand.
  """

  cross: functools.partial | None = None
  cross_layout: Layout | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    text: jax.Array | None,
    condition: jax.Array,
    lengths: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Maps [batch, tokens, width] to an array like it; returns the text too.

    Args:
      x: the residual stream.
      text: condition tokens [batch, text, width], for cross-attention.
      condition: SiLU of what the norms are made of, [batch, width].
      lengths: integers [batch], how many of the text's are real; all if None.
    """
    x = rows.by_rows(x)
    shift, scale, gate, *of_mlp = self._statistics("modulation", condition, 6)
    y = self._normed("mixer_norm", x, shift, scale)
    y = self.mixer(name="attention")(y, self.layout)
    x = x + gate * taps.tap(self, "mixed", rows.by_rows(y))
    if self.cross is not None:
      y = normalization.LayerNorm(
        epsilon=1e-6,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name="cross_norm",
      )(x)
      cross = self.cross(name="cross_attention")
      x = x + rows.by_rows(cross(y, self.cross_layout, text, lengths))
    x = self._fed_forward("mlp", x, *of_mlp)
    return taps.tap(self, "hidden_state", x), text


class JointBlock(_Adaptive):
  """Tokens of a grid and of a text in one attention (MMDiT, arXiv 2403.03206).

  Each kind is `Block` without cross-attention, with weights of its own.

  Attributes:
    last: whether nobody reads the text any more: it is keys and values only.
  """

  last: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    text: jax.Array,
    condition: jax.Array,
    lengths: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Maps the two residual streams to arrays like them.

    Args:
      x: tokens of the grid [batch, tokens, width].
      text: condition tokens [batch, text, width].
      condition: SiLU of what the norms are made of, [batch, width].
      lengths: integers [batch], how many of all tokens are real, those of the
        grid counted; all if None.

    Returns:
      The streams; None for the text of the last block.
    """
    x, text = rows.by_rows(x), rows.by_rows(text)
    of_x = self._statistics("modulation", condition, 6)
    of_text = self._statistics(
      "text_modulation", condition, 2 if self.last else 6
    )
    y, z = self.mixer(name="attention")(
      self._normed("mixer_norm", x, *of_x[:2]),
      self.layout,
      text=self._normed("text_mixer_norm", text, *of_text[:2]),
      lengths=lengths,
    )
    x = x + of_x[2] * taps.tap(self, "mixed", rows.by_rows(y))
    x = self._fed_forward("mlp", x, *of_x[3:])
    x = taps.tap(self, "hidden_state", x)
    if self.last:
      return x, None
    text = text + of_text[2] * taps.tap(self, "text_mixed", rows.by_rows(z))
    text = self._fed_forward("text_mlp", text, *of_text[3:])
    return x, taps.tap(self, "text_hidden_state", text)


class FinalLayer(nn.Module):
  """Adaptive norm and a dense layer to patches, which begin with zeros.

  Attributes:
    features: channels of a patch.
    dtype: dtype of the norm; the dense layer is float32, since samplers add up
      many of its results.
    param_dtype: dtype of the parameters.
  """

  features: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] to float32 [batch, tokens, features]."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    shift, scale = modulation("modulation", condition, 2, **dtypes)
    x = modulated(plain_norm("norm", **dtypes)(x), shift, scale)
    return layers.Dense(
      self.features,
      kernel_init=nn.initializers.zeros,
      dtype=jnp.float32,
      param_dtype=self.param_dtype,
      name="out",
    )(x.astype(jnp.float32))


class LabelEmbedding(nn.Module):
  """A row for each class, and one for none, index `num_classes`.

  Attributes:
    num_classes: number of classes.
    width: channels of a row.
    dtype: dtype of the result.
    param_dtype: dtype of the parameters.
  """

  num_classes: int
  width: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, labels: jax.Array) -> jax.Array:
    """Maps [...] to [..., width]; a class that there is not becomes NaN."""
    shape = self.num_classes + 1, self.width
    table = self.param("embedding", _EMBEDDING, shape, self.param_dtype)
    return layers.rows_of_classes(table, labels).astype(self.dtype)


class ConditionTokens(nn.Module):
  """What attention reads of a condition: a start token, then those it is given.

  The start token is what is left of a text that is none, so that no query ever
  sees nothing.

  Attributes:
    width: channels of a token.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  width: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] to [batch, 1 + tokens, width]."""
    shape = 1, self.width
    start = self.param("start", _EMBEDDING, shape, self.param_dtype)
    start = jnp.broadcast_to(start[None], (len(tokens), *shape))
    return jnp.concatenate([start.astype(self.dtype), tokens], axis=1)


def modulation(
  name: str, condition: jax.Array, count: int, **dtypes
) -> list[jax.Array]:
  """Returns what adaptive norms and gates are made of, zeros at first.

  Args:
    name: name of the dense layer.
    condition: [batch, width].
    count: how many there are.
    **dtypes: `dtype` and `param_dtype`.

  Returns:
    `count` times [batch, 1, width].
  """
  zeros = nn.initializers.zeros
  dense = layers.Dense(
    count * condition.shape[-1], kernel_init=zeros, name=name, **dtypes
  )
  return jnp.split(dense(condition)[:, None], count, axis=-1)


def plain_norm(name: str, **dtypes) -> nn.Module:
  """A layer norm without parameters."""
  return normalization.LayerNorm(
    epsilon=1e-6, use_scale=False, use_bias=False, name=name, **dtypes
  )


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns x (1 + scale) + shift."""
  return x * (1 + scale) + shift


def to_patches(x: jax.Array, patch: Sequence[int]) -> jax.Array:
  """Maps [batch, *shape, channels] to [batch, tokens, patch and channels].

  Tokens come in row-major order, and so do the places of a patch, channels
  last.

  Args:
    x: images or videos, whose sides `patch` divides.
    patch: sides of a patch.
  """
  axes = len(patch)
  grid = [n // p for n, p in zip(x.shape[1:-1], patch, strict=True)]
  split = [n for pair in zip(grid, patch, strict=True) for n in pair]
  x = x.reshape(len(x), *split, x.shape[-1])
  order = (*range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2))
  x = x.transpose(0, *order, 2 * axes + 1)
  return x.reshape(len(x), math.prod(grid), -1)


def from_patches(
  x: jax.Array, grid: Sequence[int], patch: Sequence[int]
) -> jax.Array:
  """The inverse of `to_patches`, of tokens on a grid."""
  axes = len(patch)
  x = x.reshape(len(x), *grid, *patch, -1)
  order = [n for axis in range(1, axes + 1) for n in (axis, axes + axis)]
  x = x.transpose(0, *order, 2 * axes + 1)
  sides = (n * p for n, p in zip(grid, patch, strict=True))
  return x.reshape(len(x), *sides, x.shape[-1])
