"""Blocks, embeddings and positions of LINA, with PyTorch's initial weights."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import (
  feed_forward_branch,
  feed_forward_tpu,
  layers,
  normalization,
  positions,
  rows,
  taps,
)
from models.dense import dot_general
from models.feed_forward import exact_gelu

# Longest text; what pads it is stored with the weights.
MAX_TEXT = 512
# Channels of a time before its dense layers.
TIME_CHANNELS = 256
# The least for which the kernel of feed-forward layers is taken, whose
# parameters and their gradients take as long as it saves with fewer.
_TOKENS_OF_A_CHANNEL = 1.25
_TOKEN_INIT = nn.initializers.normal(0.02)


def uniform(fan_in: int) -> layers.Initializer:
  """U(-b, b) with b = fan_in^(-1/2): PyTorch's of kernels and of biases."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def dense(features: int | tuple[int, ...], fan_in: int, **options) -> nn.Module:
  """Returns a dense layer of the last axis, initialised as PyTorch's."""
  inits = {"kernel_init": uniform(fan_in), "bias_init": uniform(fan_in)}
  return layers.DenseGeneral(features, **{**inits, **options})


class HeadsDense(nn.Module):
  """A dense layer of the last axis to heads, initialised as PyTorch's.

  The same as `dense((heads, dim), ...)`, but that the bias is added before the
  heads are taken apart: XLA then adds it as it writes the product, and does not
  read and write it once more.

  Attributes:
    heads: number of heads.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
    kernel_init: initializer of the kernel; PyTorch's if None.
    bias_init: initializer of the bias; PyTorch's if None.
  """

  heads: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32
  kernel_init: layers.Initializer | None = None
  bias_init: layers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., width] to [..., heads, width / heads]."""
    width = x.shape[-1]
    split = self.heads, width // self.heads
    init = self.kernel_init or uniform(width)
    kernel = self.param("kernel", init, (width, *split), self.param_dtype)
    init = self.bias_init or uniform(width)
    bias = self.param("bias", init, split, self.param_dtype)
    kernel = kernel.reshape(width, width).astype(self.dtype)
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    out = dot_general(x.astype(self.dtype), kernel, numbers)
    out += jnp.expand_dims(bias.ravel(), range(x.ndim - 1)).astype(self.dtype)
    return out.reshape(*x.shape[:-1], *split)


class Mlp(nn.Module):
  """shrink(activation(expand(x))), two dense layers.

  Attributes:
    hidden_width: channels between them.
    out_width: channels of the result.
    activation: function between them.
    kernel_init: initializer of both kernels; PyTorch's if None.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
    bias_init: initializer of both biases; PyTorch's if None.
  """

  hidden_width: int
  out_width: int
  activation: Callable[[jax.Array], jax.Array] = nn.silu
  kernel_init: layers.Initializer | None = None
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32
  bias_init: layers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps the last axis to `out_width` channels."""
    options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    if self.kernel_init is not None:
      options["kernel_init"] = self.kernel_init
    if self.bias_init is not None:
      options["bias_init"] = self.bias_init
    expand = dense(self.hidden_width, x.shape[-1], name="expand", **options)
    x = self.activation(expand(x))
    return dense(self.out_width, x.shape[-1], name="shrink", **options)(x)


class Block(nn.Module):
  """x + LN(attention(x)), then x + LN(MLP(x)): normalised within the branch.

  Attributes:
    attention: makes the attention, given a name.
    feed_forward_implementation: which implementation of the second branch runs;
      see `feed_forward_branch.kernel`.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  attention: functools.partial
  feed_forward_implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, lengths: jax.Array | None = None
  ) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    norm = functools.partial(normalization.LayerNorm, epsilon=1e-5, **dtypes)
    x = rows.by_rows(x)
    y = rows.by_rows(self.attention(name="attention")(x, lengths))
    x = x + norm(name="attention_norm")(y)
    width = x.shape[-1]
    mlp = Mlp(4 * width, width, exact_gelu, name="mlp", **dtypes)
    run = None
    if not self.is_initializing():
      run = self._kernel(x)
    if run is None:
      x = x + norm(name="mlp_norm")(rows.by_rows(mlp(x)))
    else:
      x = rows.by_rows(run(rows.by_rows(x), None))
    return taps.tap(self, "hidden_state", x)

  def _kernel(self, x):
    """The second branch as a kernel, or None if layers run one by one."""
    have = self.variables["params"]
    return feed_forward_branch.kernel(
      x,
      feed_forward_branch.parameters(
        None, have["mlp"]["expand"], have["mlp"]["shrink"], have["mlp_norm"]
      ),
      feed_forward_tpu.Form(activation="gelu", out_epsilon=1e-5),
      self.dtype,
      self.feed_forward_implementation,
      least=_TOKENS_OF_A_CHANNEL,
    )


class Stack(nn.Module):
  """Blocks one after another, "block_0" and so on.

  Attributes:
    depth: how many there are.
    block: makes a block, given a name.
  """

  depth: int
  block: functools.partial

  @nn.compact
  def __call__(
    self, x: jax.Array, lengths: jax.Array | None = None
  ) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it."""
    for i in range(self.depth):
      x = self.block(name=f"block_{i}")(x, lengths)
    return x


class LabelEmbedding(nn.Module):
  """A token for each class, and one for none, index `num_classes`.

  Attributes:
    num_classes: number of classes.
    width: channels of a token.
    dtype: dtype of the result.
    param_dtype: dtype of the parameters.
  """

  num_classes: int
  width: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, labels: jax.Array) -> jax.Array:
    """Maps [batch] to [batch, 1, width]; a class that is none becomes NaN."""
    shape = self.num_classes + 1, self.width
    table = self.param("embedding", _TOKEN_INIT, shape, self.param_dtype)
    x = layers.rows_of_classes(table, labels)[:, None]
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    return normalization.LayerNorm(epsilon=1e-5, name="norm", **dtypes)(x)


class TextEmbedding(nn.Module):
  """Text that was encoded before, made as wide as the model.

  What pads a text, and is all there is of one that was dropped, are fixed
  random tokens: "padding" [512, channels] among the "constants".

  Attributes:
    width: channels of the result.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  width: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, text: jax.Array, lengths: jax.Array | None = None
  ) -> jax.Array:
    """Maps [batch, tokens, channels] to [batch, tokens, width]."""
    tokens, channels = text.shape[1:]
    padding = self.variable(
      "constants",
      "padding",
      lambda: _TOKEN_INIT(
        self.make_rng("params"), (MAX_TEXT, channels), self.param_dtype
      ),
    ).value
    if lengths is not None:
      real = jnp.arange(tokens)[None, :] < lengths[:, None]
      text = jnp.where(real[..., None], text, padding[None, :tokens])
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = dense(self.width, channels, name="proj", **dtypes)(text)
    return normalization.LayerNorm(epsilon=1e-5, name="norm", **dtypes)(x)


class TimePosition(nn.Module):
  """LN(MLP(sincos(0))): the position of the first frame, which an image is.

  Attributes:
    width: channels of the result.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  width: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns [width]."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    # Sines of zero, and cosines.
    x = jnp.repeat(jnp.array([0.0, 1.0]), TIME_CHANNELS // 2)
    x = Mlp(self.width, self.width, **dtypes, name="mlp")(x)
    return normalization.LayerNorm(epsilon=1e-5, name="norm", **dtypes)(x)


class Connector(nn.Module):
  """Turns what an image shall be of into the tokens that condition it.

  Learned queries read the condition in a stack of blocks, and leave alone.

  Attributes:
    queries: number of tokens of the result, a square.
    token_dim: channels of a token of an image.
    stack: makes the blocks, given a name.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  queries: int
  token_dim: int
  stack: functools.partial
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, condition: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] to [batch, queries, width]."""
    batch, tokens, width = condition.shape
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    if self.is_initializing():
      # Of the frame before, of 2 x 2 tokens: NOVA makes videos too. No image
      # uses it, but released weights and published totals have it.
      inputs = 4 * self.token_dim
      dense(width, inputs, name="patch_embed", **dtypes)(jnp.zeros((1, inputs)))
    first = self.param("first_token", _TOKEN_INIT, (1, width), self.param_dtype)
    side = round(self.queries**0.5)
    x = first.astype(self.dtype)
    x = x + TimePosition(width, name="position", **dtypes)()[None, :]
    x = x + sincos_2d((side, side), width).astype(self.dtype)
    x = jnp.broadcast_to(x[None], (batch, self.queries, width))
    x = jnp.concatenate([condition, x], axis=1)
    x = self.stack(name="blocks")(x)[:, tokens:]
    return normalization.LayerNorm(epsilon=1e-5, name="norm", **dtypes)(x)


def sincos_2d(grid: tuple[int, int], width: int) -> jax.Array:
  """Returns [rows * columns, width]: sin, cos of columns, then of rows.

  Frequencies are 10000^(-i / (width / 4)), i < width / 4.
  """
  return positions.sincos_grid(grid, width)
