"""Stages and blocks of DiMR."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, open_attention, rows, taps
from models.feed_forward import FeedForward
from models.lina_layers import uniform
from models.time_norms import TimeLayerNorm, TimeRMSNorm

# What is released cuts it at -2 and 2, which are a hundred deviations.
INIT = nn.initializers.normal(0.02)


class TransformerBlock(nn.Module):
  """x + attention(norm(x)), then x + MLP(norm(x)); the stream is float32.

  Attributes:
    heads: number of heads.
    hidden_width: channels within the MLP.
    implementation: of the attention, see `attention.kernels.dispatch`.
    dtype: dtype of the branches.
    param_dtype: dtype of the parameters.
  """

  heads: int
  hidden_width: int
  implementation: str
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array, tau: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] at times [batch] to an array like it."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = rows.by_rows(x)
    y = TimeRMSNorm(name="attention_norm", **dtypes)(x, tau)
    y = Attention(self.heads, self.implementation, name="attention", **dtypes)(
      y
    )
    x = x + rows.by_rows(y)
    return _add_mlp(self, x, tau)


class ConvolutionBlock(nn.Module):
  """x + convolution(x), then x + MLP(norm(x)); the stream is float32.

  The convolution reads what was not normalised, so that it is float32 too.

  Attributes:
    kernel_size: side of the filters, odd.
    hidden_width: channels within the MLP.
    dtype: dtype of the MLP.
    param_dtype: dtype of the parameters.
  """

  kernel_size: int
  hidden_width: int
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array, tau: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to an array like it."""
    init = uniform(self.kernel_size**2)
    convolve = layers.DepthwiseConv(
      self.kernel_size,
      use_bias=True,
      kernel_init=init,
      bias_init=init,
      dtype=jnp.float32,
      param_dtype=self.param_dtype,
      name="convolution",
    )
    x = rows.by_rows(x)
    return _add_mlp(self, x + convolve(x), tau)


def _add_mlp(
  block: TransformerBlock | ConvolutionBlock, x: jax.Array, tau: jax.Array
) -> jax.Array:
  dtypes = {"dtype": block.dtype, "param_dtype": block.param_dtype}
  y = TimeRMSNorm(name="mlp_norm", **dtypes)(x, tau)
  mlp = FeedForward(
    "geglu", block.hidden_width, True, INIT, INIT, name="mlp", **dtypes
  )
  return taps.tap(block, "hidden_state", x + rows.by_rows(mlp(y)))


class Attention(nn.Module):
  """Attention among all tokens.

  Attributes:
    heads: number of heads.
    implementation: see `attention.kernels.dispatch`.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  heads: int
  implementation: str
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it."""
    width = x.shape[-1]
    dense = functools.partial(
      layers.DenseGeneral,
      kernel_init=INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    # [batch, tokens, heads, width / heads]
    q, k, v = (
      dense((self.heads, width // self.heads), use_bias=False, name=name)(x)
      for name in ("query", "key", "value")
    )
    out = open_attention.dot_product(
      self, q, k, v, implementation=self.implementation
    )
    return dense(width, axis=(-2, -1), name="out")(out)


class Stage(nn.Module):
  """A U of blocks at one resolution, that says what it makes of the noise.

  The blocks of the second half read what those of the first half gave, the last
  ones first. All of what blocks gave goes up to the next stage.

  Attributes:
    width: channels.
    depth: number of blocks, odd.
    block: makes a block, given a name; called with what it maps and the times.
    patch_size: side in pixels of what a position of the stage stands for.
    grid: the most rows and columns of positions.
    classes: rows of the table of classes, of which one is a token beside the
      others; 0 for a stage without, whose blocks take images.
    dtype: dtype of the computation; the residual stream is float32.
    param_dtype: dtype of the parameters.
  """

  width: int
  depth: int
  block: functools.partial
  patch_size: int
  grid: tuple[int, int]
  classes: int
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    tau: jax.Array,
    label: jax.Array,
    below: jax.Array | None,
  ) -> tuple[jax.Array, jax.Array]:
    """Predicts at the resolution of the stage.

    Args:
      x: the whole image, [batch, height, width, channels].
      tau: times [batch], from -1 to 1.
      label: classes [batch].
      below: what the stage before gave for this one, if there is one.

    Returns:
      (prediction, features): float32 [batch, rows, columns, channels] and
      [batch, rows, columns, (depth + 1) width].
    """
    channels = x.shape[-1]
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = self._embed(x)
    if below is not None:
      ratio = x.shape[1] // below.shape[1]
      x = x + Upsample(self.width, ratio, name="upsample", **dtypes)(below, tau)
    image = x.shape
    if self.classes:
      x = x.reshape(len(x), -1, self.width)
      x = jnp.concatenate([self._class_token(label), x], axis=1)
    x, kept = self._blocks(x.astype(jnp.float32), tau)
    if self.classes:
      x, *kept = (y[:, 1:].reshape(image) for y in (x, *kept))
    x = TimeLayerNorm(name="norm", **dtypes)(x, tau)
    out = layers.Conv(
      channels,
      (3, 3),
      padding=1,
      name="out",
      **dtypes,
      **_inits(9 * self.width),
    )(x)
    return out.astype(jnp.float32), jnp.concatenate(kept, axis=-1)

  def _embed(self, x: jax.Array) -> jax.Array:
    """Patches and their places, [batch, rows, columns, width]."""
    side = self.patch_size
    x = layers.Conv(
      self.width,
      (side, side),
      strides=side,
      padding="VALID",
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="patch_embed",
      **_inits(side**2 * x.shape[-1]),
    )(x)
    shape = (*self.grid, self.width)
    places = self.param("position", INIT, shape, self.param_dtype)
    # A smaller image lies in the corner, as released.
    places = places[: x.shape[1], : x.shape[2]].astype(self.dtype)
    return x + places[None]

  def _class_token(self, label: jax.Array) -> jax.Array:
    shape = self.classes, self.width
    table = self.param("classes", INIT, shape, self.param_dtype)
    return layers.rows_of_classes(table, label)[:, None].astype(self.dtype)

  def _blocks(
    self, x: jax.Array, tau: jax.Array
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Returns what leaves the last block, and what entered and left each."""
    kept, skips = [x.astype(self.dtype)], []
    half = self.depth // 2
    for i in range(self.depth):
      if i > half:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = layers.Dense(
          self.width,
          kernel_init=INIT,
          dtype=self.dtype,
          param_dtype=self.param_dtype,
          name=f"skip_{i - half - 1}",
        )(x)
      x = self.block(name=f"block_{i}")(x.astype(jnp.float32), tau)
      kept.append(x.astype(self.dtype))
      if i < half:
        skips.append(x)
    return x, kept


class Upsample(nn.Module):
  """From all features of a stage to what is added to the next, normalised.

  Attributes:
    width: channels of the result.
    ratio: rows and columns of the result for one of the features.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  width: int
  ratio: int
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array, tau: jax.Array) -> jax.Array:
    """Maps [batch, rows, columns, channels] to `ratio` times the sides."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    batch, height, width, _ = x.shape
    ratio = self.ratio
    x = TimeLayerNorm(name="norm", **dtypes)(x, tau)
    x = layers.Dense(
      ratio**2 * self.width, kernel_init=INIT, name="dense", **dtypes
    )(x)
    x = x.reshape(batch, height, width, ratio, ratio, self.width)
    x = x.swapaxes(2, 3)
    x = x.reshape(batch, height * ratio, width * ratio, self.width)
    return TimeLayerNorm(name="out_norm", **dtypes)(x, tau)


def _inits(fan_in: int) -> dict[str, layers.Initializer]:
  """PyTorch's of a convolution."""
  return {"kernel_init": uniform(fan_in), "bias_init": uniform(fan_in)}
