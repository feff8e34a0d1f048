"""DuoFormer's tokens: of the scales of a patch, and of the patches."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from models import layers, normalization, taps

Dtype = layers.Dtype

# The authors' initialisers, of which the normal is PyTorch's truncated one, cut
# at 2, so many deviations away that nothing is cut.
TOKEN_INIT = nn.initializers.normal(0.036)
CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ScaleTokens(nn.Module):
  """The tokens of each patch: what stands for it, then coarse to fine."""

  width: int
  stages: tuple[int, ...]
  scale_token: str
  released: bool
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> jax.Array:
    """Maps [B, H / s, W / s, C], s = 4 ... 32, to [B, patches, tokens, D]."""
    tokens = []
    for stage in self.stages:
      # A 1 x 1 convolution.
      x = layers.Dense(
        self.width,
        kernel_init=CONV_INIT,
        bias_init=nn.initializers.normal(1e-6),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=f"projection_{stage}",
      )(maps[stage])
      tokens.append(
        patch_tokens(
          x, 2 ** (3 - stage), column_major=self.released and stage == 2
        )
      )
    first = self._scale_token(maps, tokens[0], train)
    x = jnp.concatenate([*first, *tokens], axis=2)
    position = self.param("position", TOKEN_INIT, x.shape[2:], self.param_dtype)
    x += position[None, None].astype(x.dtype)
    return taps.tap(self, "hidden_state", x)

  def _scale_token(self, maps, like, train) -> list[jax.Array]:
    """Returns what stands for a patch [B, patches, 1, D], or nothing."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    if self.scale_token == "none":
      return []
    if self.scale_token == "channel":
      x = ChannelToken(self.width, name="channel_token", **dtypes)(maps, train)
      return [patch_tokens(x, 1)]
    token = self.param(
      "scale_token", TOKEN_INIT, (self.width,), self.param_dtype
    )
    shape = (*like.shape[:2], 1, self.width)
    return [jnp.broadcast_to(token.astype(like.dtype), shape)]


def patch_tokens(
  x: jax.Array, side: int, *, column_major: bool = False
) -> jax.Array:
  """Lists the pixels of each patch of a map.

  Args:
    x: [batch, rows * side, columns * side, channels].
    side: pixels of the map along the side of a patch.
    column_major: whether those of a patch are listed column by column.

  Returns:
    [batch, rows * columns, side * side, channels], patches row by row.

  Raises:
    ValueError: if `side` does not divide height and width.
  """
  x = attention.block_partition(x, side)
  if column_major:
    batch, patches, tokens, channels = x.shape
    x = x.reshape(batch, patches, side, side, channels).swapaxes(2, 3)
    x = x.reshape(batch, patches, tokens, channels)
  return x


class ChannelToken(nn.Module):
  """The paper's scale token: all maps shrunk to the last one's size, fused."""

  width: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, maps: list[jax.Array], train: bool) -> jax.Array:
    """Maps [B, H / s, W / s, C], s = 4 ... 32, to [B, H / 32, W / 32, D]."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    shrunk = []
    for stage, x in enumerate(maps):
      for i in range(2 - stage):
        x = nn.Conv(
          x.shape[-1],
          (3, 3),
          strides=2,
          padding=1,
          kernel_init=CONV_INIT,
          name=f"shrink_{stage}_{i}",
          **dtypes,
        )(x)
      shrunk.append(x if stage == 3 else nn.max_pool(x, (2, 2), (2, 2)))
    x = jnp.concatenate(shrunk, axis=-1)
    for i in range(4):
      x = layers.ConvNorm(
        self.width,
        functools.partial(
          normalization.BatchNorm, momentum=0.9, epsilon=1e-5, **dtypes
        ),
        kernel_size=3,
        activation=nn.relu,
        use_bias=True,
        kernel_init=CONV_INIT,
        name=f"fuse_{i}",
        **dtypes,
      )(x, train)
    return x


class PatchTokens(nn.Module):
  """Puts the class token in front of the patches, and adds positions."""

  side: int
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Maps [B, rows * columns, D] to [B, 1 + rows * columns, D]."""
    batch, _, width = x.shape
    token = self.param("class_token", TOKEN_INIT, (width,), self.param_dtype)
    shape = (1 + self.side**2, width)
    position = self.param("position", TOKEN_INIT, shape, self.param_dtype)
    token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
    x = jnp.concatenate([token, x], axis=1)
    x += resize_positions(position, grid)[None].astype(x.dtype)
    return taps.tap(self, "hidden_state", x)


def resize_positions(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Interpolates a square table of positions for another grid of patches.

  Args:
    table: [1 + side * side, width], that of the class token first.
    grid: rows and columns of patches.

  Returns:
    [1 + rows * columns, width], bicubic; the table itself where sizes agree.
  """
  side = math.isqrt(len(table))
  if grid == (side, side):
    return table
  first, rest = table[:1], table[1:].reshape(side, side, -1)
  rest = jax.image.resize(rest, (*grid, table.shape[1]), "bicubic")
  return jnp.concatenate([first, rest.reshape(-1, table.shape[1])])
