"""Layers and helpers that several model families share."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import convolution, dense
from models.depthwise import depthwise_convolution

# Flax's layers, computed in a way that suits every device.
Conv = functools.partial(
  nn.Conv, conv_general_dilated=convolution.conv_general_dilated
)
Dense = functools.partial(nn.Dense, dot_general=dense.dot_general)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=dense.dot_general)

Dtype = str | type | jnp.dtype
Initializer = Callable[..., jax.Array]


def check_images(x: jax.Array) -> None:
  """Raises ValueError unless `x` is what every model takes."""
  if (
    x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating) or 0 in x.shape[1:]
  ):
    raise ValueError(
      f"x is {x.dtype} of shape {x.shape}; it must be floating point "
      "[batch, height, width, channels]"
    )


def rows_of_classes(table: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the row of each class, NaN for a class that there is not.

  Args:
    table: [classes, width].
    labels: integers [...].
  """
  # `take` counts negative indices from the end.
  labels = jnp.where(labels < 0, len(table), labels)
  return jnp.take(table, labels, axis=0, mode="fill")


def average_pool(x: jax.Array) -> jax.Array:
  """Averages 2 x 2 pixels, at an odd border those that are there."""
  batch, height, width, channels = x.shape
  if height % 2 or width % 2:
    return nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
  x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
  return x.mean((2, 4))


def max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
  """Takes the maximum of 3 x 3 pixels, with a border of one pixel.

  On the CPU it is that of shifted maps, since the gradient of XLA's own takes
  seven times as long there. Equal pixels then share a gradient.
  """

  def shifted(x):
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jnp.pad(x, border, constant_values=-jnp.inf)
    for axis in (1, 2):
      last = (x.shape[axis] - 3) // stride * stride
      parts = [
        jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(3)
      ]
      x = functools.reduce(jnp.maximum, parts)
    return x

  def windows(x):
    return nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)))

  return jax.lax.platform_dependent(x, cpu=shifted, default=windows)


class ConvNorm(nn.Module):
  """Convolution, batch norm, activation: what residual networks are made of.

  Its parameters are under "conv" and "norm". A 1 x 1 convolution is a dense
  layer, kernel `[in, out]`, and faster as one.

  Attributes:
    width: channels of the output.
    batch_norm: makes the normalisation, given `use_running_average`.
    kernel_size: side of the filters.
    stride: step in both directions.
    groups: groups of channels that do not see each other.
    padding: "symmetric", PyTorch's, (kernel_size - 1) // 2 pixels on each side;
      or "same", TensorFlow's, where the odd pixel goes after. They differ where
      the stride is not 1.
    activation: function after the normalisation.
    use_bias: whether the convolution has a bias.
    kernel_init: initializer of the filters.
    scale_init: initializer of the normalisation's scale.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  width: int
  batch_norm: functools.partial
  kernel_size: int = 1
  stride: int = 1
  groups: int = 1
  padding: str = "symmetric"
  activation: Callable[[jax.Array], jax.Array] = lambda x: x
  use_bias: bool = False
  kernel_init: Initializer = nn.initializers.lecun_normal()
  scale_init: Initializer = nn.initializers.ones
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if self.padding not in ("symmetric", "same"):
      raise ValueError(
        f"padding is {self.padding!r}; it must be 'symmetric' or 'same'"
      )
    options = {
      "use_bias": self.use_bias,
      "kernel_init": self.kernel_init,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
      "name": "conv",
    }
    if self.kernel_size == 1 and self.groups == 1:
      x = x[:, :: self.stride, :: self.stride]
      x = Dense(self.width, **options)(x)
    else:
      border = (self.kernel_size - 1) // 2
      x = Conv(
        self.width,
        (self.kernel_size, self.kernel_size),
        strides=self.stride,
        padding="SAME" if self.padding == "same" else border,
        feature_group_count=self.groups,
        **options,
      )(x)
    norm = self.batch_norm(
      use_running_average=not train, scale_init=self.scale_init, name="norm"
    )
    return self.activation(norm(x))


class DepthwiseConv(nn.Module):
  """A square filter for each channel.

  Attributes:
    kernel_size: side of the filters.
    stride: step in both directions.
    padding: "same" or "symmetric", see `ConvNorm`; the latter for filters of an
      odd side and a stride of at most 2.
    use_bias: whether each channel has a bias too.
    kernel_init: initializer of the filters.
    bias_init: initializer of the biases.
    implementation: see `models.depthwise.depthwise_convolution`.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  kernel_size: int = 3
  stride: int = 1
  padding: str = "same"
  use_bias: bool = False
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros
  implementation: str = "xla"
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
    kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
    convolve = functools.partial(
      depthwise_convolution,
      kernel=kernel,
      stride=self.stride,
      implementation=self.implementation,
    )
    x = x.astype(self.dtype)
    if self.padding == "same" or self.stride == 1:
      y = convolve(x)
    else:
      # Of an odd side SAME is symmetric. An even one has the odd pixel after;
      # with a border of one it has as many before, and one place too many.
      border = [
        (0, 0),
        *((1, 1) if n % 2 == 0 else (0, 0) for n in x.shape[1:3]),
      ]
      height, width = (-(-n // 2) for n in x.shape[1:3])
      y = convolve(jnp.pad(x, (*border, (0, 0))))[:, :height, :width]
    if not self.use_bias:
      return y
    bias = self.param("bias", self.bias_init, x.shape[-1:], self.param_dtype)
    return y + bias.astype(self.dtype)[None, None, None]


class SqueezeExcite(nn.Module):
  """Scales each channel by what the mean over the image says (1709.01507).

  Attributes:
    width: channels of the bottleneck; if 0, `ratio` says.
    ratio: those channels over those of the image, where `width` is 0.
    activation: function between the two dense layers.
    kernel_init: initializer of both kernels.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  width: int = 0
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  kernel_init: Initializer = nn.initializers.lecun_normal()
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32
  ratio: float = 0.25

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    del train
    width = self.width or max(round(self.ratio * x.shape[-1]), 1)
    options = {
      "kernel_init": self.kernel_init,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    gate = x.mean((1, 2), keepdims=True)
    gate = Dense(width, name="reduce", **options)(gate)
    gate = self.activation(gate)
    gate = Dense(x.shape[-1], name="expand", **options)(gate)
    return x * nn.sigmoid(gate)


class StochasticDepth(nn.Module):
  """Drops a residual branch for a whole image at a time (1603.09382).

  Branches that stay are divided by the probability of staying. Random bits come
  from the collection "dropout".

  Attributes:
    rate: probability of dropping, at least 0 and less than 1.
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if not 0 <= self.rate < 1:
      raise ValueError(
        f"rate is {self.rate}; it must be at least 0 and less than 1"
      )
    if not train or self.rate == 0:
      return x
    survival = 1 - self.rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = jax.random.bernoulli(self.make_rng("dropout"), survival, shape)
    return x * (keep / survival).astype(x.dtype)


def linear_rates(
  greatest: float, depths: Sequence[int], last: int | None = None
) -> list[tuple[float, ...]]:
  """Rates of stochastic depth that grow with the block, from 0 in the first.

  Args:
    greatest: the rate of block `last`.
    depths: number of blocks of each stage.
    last: a block counted from 0; the last one there is if None.

  Returns:
    For each stage the rates of its blocks.
  """
  last = max(sum(depths) - 1, 1) if last is None else last
  firsts = itertools.accumulate(depths, initial=0)
  return [
    tuple(greatest * (first + i) / last for i in range(depth))
    for first, depth in zip(firsts, depths, strict=False)
  ]


class Stage(nn.Module):
  """Blocks of one width, the first of which may stride.

  Attributes:
    block: makes a block, given `stride` and `stochastic_depth_rate`; called
      with the images and whether it trains.
    stride: step of the first block.
    stochastic_depth_rates: of each block.
    fields: what else each block is given, if anything.
  """

  block: functools.partial
  stride: int
  stochastic_depth_rates: tuple[float, ...]
  fields: tuple[Mapping[str, Any], ...] | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    for i, rate in enumerate(self.stochastic_depth_rates):
      block = self.block(
        stride=1 if i else self.stride,
        stochastic_depth_rate=rate,
        name=f"block_{i}",
        **(self.fields[i] if self.fields else {}),
      )
      x = block(x, train)
    return x


class Head(nn.Module):
  """Mean over the image, dropout, logits: the end of a residual network.

  Attributes:
    num_classes: number of logits; if 0, the mean is what comes out.
    dropout_rate: probability of dropping a channel of the mean.
    dtype: dtype of the computation; the result is float32.
    param_dtype: dtype of the parameters.
    kernel_init: initializer of the kernel.
  """

  num_classes: int
  dropout_rate: float
  dtype: Dtype
  param_dtype: Dtype
  kernel_init: Initializer = nn.initializers.normal(0.01)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = x.mean((1, 2))
    if self.num_classes:
      x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
      x = Dense(
        self.num_classes,
        kernel_init=self.kernel_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name="logits",
      )(x)
    return x.astype(jnp.float32)
