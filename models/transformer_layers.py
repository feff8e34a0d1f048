"""What a transformer is made of: embeddings, layers, repeats, the head."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import (
  affine_scale,
  dense,
  feed_forward,
  insertion,
  layers,
  mixer_base,
  rows,
  taps,
)
from models.residual_streams import DepthStream

Norm = Callable[..., nn.Module]
Stream = jax.Array | DepthStream


class Embedding(nn.Module):
  """A table with a row for each number, under "embedding".

  Attributes:
    rows: how many numbers there are.
    width: channels of a row.
    init: initializer of the table.
    dtype: dtype of the result.
    param_dtype: dtype of the table.
  """

  rows: int
  width: int
  init: layers.Initializer
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  def setup(self):
    shape = (self.rows, self.width)
    self.embedding = self.param("embedding", self.init, shape, self.param_dtype)

  def __call__(self, numbers: jax.Array) -> jax.Array:
    """Maps integers [...], or sums of rows [..., rows], to [..., width]."""
    if jnp.issubdtype(numbers.dtype, jnp.floating):
      return numbers.astype(self.dtype) @ self.embedding.astype(self.dtype)
    return jnp.take(self.embedding, numbers, axis=0).astype(self.dtype)


class Layer(nn.Module):
  """A sequence mixer and a feed-forward layer, each residual and normalised.

  Attributes:
    mixer: makes the mixer, given a name.
    norm: makes a normalisation, given a name.
    residual_clip: see `clipped`.
    norm_placement: "pre" normalises what a branch reads, "post" the sum that
      it was added to, "sandwich" what it reads and what it gives.
    mixer_norm: whether the mixer's input is normalised at all, if it would be.
    mlp: a key of `feed_forward.FEED_FORWARDS`, or "none".
    mlp_width: hidden channels of the feed-forward layer.
    mlp_bias: whether its dense layers have biases.
    dropout_rate: probability of dropping a channel of what a branch gives.
    kernel_init: initializer of what reads the residual stream.
    out_init: initializer of what writes to it.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  mixer: functools.partial
  norm: functools.partial
  residual_clip: float
  norm_placement: str
  mixer_norm: bool
  mlp: str
  mlp_width: int
  mlp_bias: bool
  dropout_rate: float
  kernel_init: layers.Initializer
  out_init: layers.Initializer
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(
    self,
    x: Stream,
    positions: jax.Array | None,
    segments: jax.Array | None,
    cache: mixer_base.Cache | None,
    train: bool,
  ) -> tuple[Stream, mixer_base.Cache | None]:
    """Maps the residual stream to one like it, and returns the new cache.

    The stream is an array [batch, length, width] or a `DepthStream`.
    """
    x = self._seen(x, "input_state")
    y = self._read(x, "mixer", self.mixer_norm)
    y, cache = self.mixer(name="mixer")(y, positions, segments, cache, train)
    x = self._seen(self._write(x, y, "mixer", train), "middle_state")
    if self.mlp != "none":
      mlp = feed_forward.FeedForward(
        self.mlp,
        self.mlp_width,
        self.mlp_bias,
        self.kernel_init,
        self.out_init,
        self.dtype,
        self.param_dtype,
        name="mlp",
      )
      x = self._write(x, mlp(self._read(x, "mlp")), "mlp", train)
    return self._seen(x, "hidden_state"), cache

  def _seen(self, x: Stream, name: str) -> Stream:
    """Returns the residual stream, as tapped."""
    if isinstance(x, DepthStream):
      # Between branches it is no one array.
      return x.tap(self, name) if name == "hidden_state" else x
    return taps.tap(self, name, x)

  def _read(self, x: Stream, branch: str, normed: bool = True) -> jax.Array:
    """Returns what a branch takes of the residual stream."""
    if isinstance(x, DepthStream):
      x = x.read(self, f"{branch}_depth_weights")
    if self.norm_placement == "post" or not normed:
      return x
    return self.norm(name=f"{branch}_norm")(x)

  def _write(self, x: Stream, y: jax.Array, branch: str, train: bool) -> Stream:
    """Returns the residual stream with what a branch gave."""
    y = rows.by_rows(y, tokens=True)
    y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
    if self.norm_placement == "sandwich":
      y = self.norm(name=f"{branch}_post_norm")(y)
    y = taps.tap(self, f"{branch}_output", y)
    if isinstance(x, DepthStream):
      return x.write(y)
    x = x + y
    if self.norm_placement == "post":
      x = self.norm(name=f"{branch}_norm")(x)
    return clipped(x, self.residual_clip)


def clipped(x: jax.Array, size: float) -> jax.Array:
  """Returns a residual stream within [-size, size], as it is if that is 0.

  A control of arXiv 2601.22966, which takes 10, 100 and 1000.
  """
  return jnp.clip(x, -size, size) if size else x


class Repeat(nn.Module):
  """One round of the pattern of layers: what a scan goes over.

  Attributes:
    layers: each makes a layer, given a name.
  """

  layers: tuple[functools.partial, ...]

  @nn.compact
  def __call__(
    self,
    x: Stream,
    positions: jax.Array | None,
    segments: jax.Array | None,
    cache: dict[str, mixer_base.Cache] | None,
    train: bool,
  ) -> tuple[Stream, dict[str, mixer_base.Cache] | None]:
    """Maps the residual stream to one like it, and returns the new caches."""
    new = {}
    for i, layer in enumerate(self.layers):
      name = f"layer_{i}"
      own = None if cache is None else cache[name]
      x, new[name] = layer(name=name)(x, positions, segments, own, train)
    return x, None if cache is None else new


def scanned(repeats: int) -> Callable[..., nn.Module]:
  """Returns what makes `Repeat`s that are run by a scan, stacked."""
  return nn.scan(
    Repeat,
    variable_axes=dict.fromkeys(
      (
        "params",
        affine_scale.COLLECTION,
        insertion.STATE,
        *taps.COLLECTIONS,
      ),
      0,
    ),
    split_rngs=dict.fromkeys(("params", "dropout", "routing"), True),
    in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),
    length=repeats,
  )


class Head(nn.Module):
  """From the residual stream to logits.

  Attributes:
    classes: number of logits.
    use_bias: whether each has a bias.
    soft_cap: logits become cap * tanh(logits / cap); 0 for none.
    transform: makes a dense layer before them, given a name; None for none.
    activation: what follows that layer, before a normalisation.
    norm: makes this normalisation, given a name.
    kernel_init: initializer of the logits' kernel.
    dtype: dtype of the computation; logits are float32.
    param_dtype: dtype of the parameters.
  """

  classes: int
  use_bias: bool
  soft_cap: float
  transform: functools.partial | None
  activation: Callable[[jax.Array], jax.Array]
  norm: functools.partial
  kernel_init: layers.Initializer
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array, table: jax.Array | None) -> jax.Array:
    """Maps [batch, length, width] to logits [batch, length, classes].

    Args:
      x: the residual stream.
      table: the embeddings [vocabulary, width] if they are the kernel too.
    """
    if self.transform is not None:
      x = self.activation(self.transform(name="transform")(x))
      x = self.norm(name="transform_norm")(x)
    logits = Logits(
      self.classes,
      self.use_bias,
      self.kernel_init,
      self.dtype,
      self.param_dtype,
      name="logits",
    )(x, table)
    if self.soft_cap:
      logits = self.soft_cap * jnp.tanh(logits / self.soft_cap)
    return logits


class Logits(nn.Module):
  """A dense layer to float32, whose kernel may be the table of embeddings."""

  classes: int
  use_bias: bool
  kernel_init: layers.Initializer
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array, table: jax.Array | None) -> jax.Array:
    shape = (x.shape[-1], self.classes)
    if table is None:
      kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
      table = kernel.T
    logits = dense.to_float32(x.astype(self.dtype), table.astype(self.dtype))
    if self.use_bias:
      zeros = nn.initializers.zeros
      bias = self.param("bias", zeros, shape[1:], self.param_dtype)
      logits += bias.astype(jnp.float32)[None, None, :]
    return logits
