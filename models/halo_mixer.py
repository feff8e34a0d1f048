"""Halo attention as a token mixer: projections, padding, attention."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from models import dense, layers, taps

Dtype = layers.Dtype


class HaloAttention(nn.Module):
  """Blocked local attention with relative positions (arXiv 2103.12731).

  Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), heads *
  value_dim]. Images that blocks do not tile are padded with zeros, half before
  and half after. The parameters are timm's: "q" [C, heads, key_dim], "kv" [C,
  heads, key_dim + value_dim], "height_rel" and "width_rel" [2 * window - 1,
  key_dim], without biases; a projection of the output has one.

  Attributes:
    heads: number of heads; if None, as many as `head_dim` goes into C.
    head_dim: channels of a head, where `heads` is None.
    key_dim: channels of queries and keys of a head; C / heads if None.
    value_dim: channels of values of a head; C / heads if None.
    block_size: side of the blocks of queries, in tokens.
    halo_size: tokens that keys reach beyond a block, on each side.
    stride: of the queries. Where it does not divide `block_size`, all tokens
      attend and 2 x 2 of them are averaged, which knows stride 2 only.
    mask_padding: whether keys beyond the edge are left out of the softmax.
    out_projection: whether a dense layer mixes the heads.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    kernel_init: initializer of the kernels; normal with deviation C ** -0.5 if
      None.
    dtype: dtype of the computation; softmax is float32.
    param_dtype: dtype of the parameters.
  """

  heads: int | None = None
  head_dim: int = 32
  key_dim: int | None = None
  value_dim: int | None = None
  block_size: int = 8
  halo_size: int = 3
  stride: int = 1
  mask_padding: bool = False
  out_projection: bool = False
  implementation: str = "auto"
  kernel_init: layers.Initializer | None = None
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    height, width, channels = x.shape[1:]
    heads, key_dim, value_dim = self._sizes(channels)
    stride = 1 if self.block_size % self.stride else self.stride
    borders = [_borders(n, self.block_size, stride) for n in (height, width)]
    x = jnp.pad(x, ((0, 0), *borders, (0, 0)))
    init = self.kernel_init or nn.initializers.normal(channels**-0.5)
    options = {
      "kernel_init": init,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    (q,) = HeadProjection(heads, (key_dim,), name="q", **options)(
      x[:, ::stride, ::stride]
    )
    kv = HeadProjection(heads, (key_dim, value_dim), name="kv", **options)
    k, v = kv(x)
    out = attend(
      self,
      q,
      k,
      v,
      block_size=self.block_size,
      halo_size=self.halo_size,
      relative_height=self._table("height_rel", key_dim),
      relative_width=self._table("width_rel", key_dim),
      stride=stride,
      mask_padding=self.mask_padding,
    )
    # [B, H / stride, W / stride, heads, value_dim], padding included
    out = out.reshape(*out.shape[:3], heads * value_dim)
    first = [before // stride for before, _ in borders]
    size = [-(-n // stride) for n in (height, width)]
    out = out[:, first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
    if stride < self.stride:
      out = layers.average_pool(out)
    if not self.out_projection:
      return out
    return layers.Dense(channels, name="out", **options)(out)

  def _sizes(self, channels: int) -> tuple[int, int, int]:
    """Heads, and channels of their keys and values."""
    heads = self.heads or channels // self.head_dim
    if not heads or channels % heads:
      raise ValueError(
        f"heads={self.heads} and head_dim={self.head_dim} do not divide the "
        f"width {channels} of the stage"
      )
    if self.block_size % self.stride and self.stride != 2:
      raise ValueError(
        f"stride is {self.stride}; with block_size {self.block_size} it must "
        "divide it or be 2"
      )
    each = channels // heads
    return heads, self.key_dim or each, self.value_dim or each

  def _table(self, name: str, key_dim: int) -> jax.Array:
    window = self.block_size + 2 * self.halo_size
    return self.param(
      name,
      nn.initializers.normal(key_dim**-0.5),
      (2 * window - 1, key_dim),
      self.param_dtype,
    )


class HeadProjection(nn.Module):
  """Projections to heads that share one parameter, without biases.

  Each is a product of its own with channels side by side, [..., heads * dim],
  which is how the kernels read them: one product of [heads, dims] would be
  transposed and cut apart in the memory of the device. The parameter is what a
  `DenseGeneral` of all of them has, "kernel" [C, heads, sum of dims].

  Attributes:
    heads: number of heads.
    dims: channels of a head in each of the projections.
    kernel_init: initializer of the kernel.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameter.
  """

  heads: int
  dims: tuple[int, ...]
  kernel_init: layers.Initializer
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    """Maps [..., C] to [..., heads, dim] for each of `dims`."""
    channels = x.shape[-1]
    shape = (channels, self.heads, sum(self.dims))

    def init(key, shape, dtype):
      # As a matrix, whose outputs are those of all heads.
      flat = (channels, self.heads * sum(self.dims))
      return self.kernel_init(key, flat, dtype).reshape(shape)

    kernel = self.param("kernel", init, shape, self.param_dtype)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    ends = list(itertools.accumulate(self.dims))[:-1]
    out = []
    for part in jnp.split(kernel, ends, axis=-1):
      y = dense.dot_general(
        x,
        part.reshape(channels, -1),
        (((x.ndim - 1,), (0,)), ((), ())),
      )
      out.append(y.reshape(*x.shape[:-1], self.heads, -1))
    return out


def attend(module, q, k, v, *, block_size, halo_size, **options) -> jax.Array:
  """Runs halo attention by the module's implementation, its map to be tapped.

  The map is [batch, rows, columns, heads, queries, keys], blocks in rows and
  columns, padding included.
  """
  blocks = {"block_size": block_size, "halo_size": halo_size}
  return taps.with_open_map(
    module,
    lambda: attention.halo_attention(
      q, k, v, **blocks, **options, implementation=module.implementation
    ),
    lambda: attention.halo_attention_weights(q, k, **blocks, **options),
    lambda weights: attention.apply_halo_attention_weights(
      weights, v, **blocks
    ),
  )


def _borders(size: int, block_size: int, stride: int) -> tuple[int, int]:
  """Pixels to add before and after, so that blocks tile them."""
  gap = -size % block_size
  # Strided queries start at the image's first pixel.
  before = gap // 2 // stride * stride
  return before, gap - before


class GlobalAttention(nn.Module):
  """Attention of all tokens with relative positions, as in BoTNet (2101.11605).

  Halo attention whose one block is the image. The parameters are timm's: "qkv"
  [C, 3 * C], queries, keys and values one after another, "height_rel" and
  "width_rel" [2 * side - 1, C / heads].

  Attributes:
    side: height and width of the image in tokens.
    heads: number of heads.
    stride: if 2, what the tokens found is averaged over 2 x 2 of them.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    dtype: dtype of the computation; softmax is float32.
    param_dtype: dtype of the parameters.
  """

  side: int
  heads: int = 4
  stride: int = 1
  implementation: str = "auto"
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    if (height, width) != (self.side, self.side):
      raise ValueError(
        f"x is {height} x {width} tokens at the global attention, whose "
        f"positions are for {self.side} x {self.side}; give images of the size "
        "that the model is for"
      )
    qkv = layers.Dense(
      3 * channels,
      use_bias=False,
      kernel_init=nn.initializers.normal(channels**-0.5),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="qkv",
    )(x)
    dim = channels // self.heads
    qkv = qkv.reshape(batch, height, width, 3, self.heads, dim)
    tables = [
      self.param(
        name,
        nn.initializers.normal(dim**-0.5),
        (2 * self.side - 1, dim),
        self.param_dtype,
      )
      for name in ("height_rel", "width_rel")
    ]
    out = attend(
      self,
      *(qkv[:, :, :, i] for i in range(3)),
      block_size=self.side,
      halo_size=0,
      relative_height=tables[0],
      relative_width=tables[1],
    )
    out = out.reshape(batch, height, width, channels)
    return layers.average_pool(out) if self.stride == 2 else out
