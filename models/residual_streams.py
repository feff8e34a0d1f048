"""What the sublayers of a transformer read, and where they write.

The usual stream is an array: a sublayer reads it and adds what it makes to it.
From a `DepthStream` it reads by attention over depth ("Attention Residuals",
arXiv 2603.15031), and nothing is added but within a block.

After k sublayers there are 1 + ceil(k / block) sources: the embeddings, the
sums over blocks that are full, and the sum of what the block that is not has
given so far. Sums have the dtype of the model, as any residual stream.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from attention import depth
from models import layers, taps


class DepthQueries(nn.Module):
  """The queries of all sublayers and of the output, and their norms' weights.

  Attributes:
    sublayers: how many there are.
    width: channels of the residual stream.
    block: how many sublayers' outputs are summed; 1 for none.
    stacked: whether streams have one shape from end to end, for a scan.
    param_dtype: dtype of the parameters.
  """

  sublayers: int
  width: int
  block: int
  stacked: bool = False
  param_dtype: layers.Dtype = jnp.float32

  def setup(self):
    shape = (self.sublayers + 1, self.width)
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    self.query = self.param("query", zeros, shape, self.param_dtype)
    self.scale = self.param("scale", ones, shape, self.param_dtype)

  def begin(self, x: jax.Array) -> "DepthStream":
    """Returns the stream that begins with embeddings [batch, length, width]."""
    if not self.stacked:
      return ListedStream(self.query, self.scale, self.block, (x,), 0)
    blocks = -(-self.sublayers // self.block)
    empty = jnp.zeros((blocks, *x.shape), x.dtype)
    sources = jnp.concatenate([x[None], empty])
    return StackedStream(
      self.query, self.scale, self.block, sources, jnp.zeros((), jnp.int32)
    )

  def end(self, stream: "DepthStream") -> jax.Array:
    """Returns what the output reads, [batch, length, width]."""
    return stream.read(self, "depth_weights")


class DepthStream(struct.PyTreeNode):
  """What sublayers read by attention over depth.

  Attributes:
    query: [sublayers + 1, width], those of the output last.
    scale: weights of the norms of keys, likewise.
    block: how many sublayers' outputs are summed.
  """

  query: jax.Array
  scale: jax.Array
  block: int = struct.field(pytree_node=False)

  def read(self, module: nn.Module, name: str) -> jax.Array:
    """Returns what the next sublayer reads, [batch, length, width].

    Args:
      module: whose value `name` the weights [sources, batch, length] are.
      name: see `taps.tap`.
    """
    raise NotImplementedError

  def write(self, y: jax.Array) -> "DepthStream":
    """Returns the stream with what a sublayer gave."""
    raise NotImplementedError

  def tap(self, module: nn.Module, name: str) -> "DepthStream":
    """Makes the last source the value `name` of a module; see `taps.tap`."""
    raise NotImplementedError

  def _read(self, module, name, number, valid) -> jax.Array:
    query, scale = (
      jax.lax.dynamic_index_in_dim(x, number, keepdims=False)
      for x in (self.query, self.scale)
    )
    weights = depth.depth_weights(query, self.sources, scale, valid=valid)
    weights = taps.tap(module, name, weights)
    return depth.apply_depth_weights(weights, self.sources)


class ListedStream(DepthStream):
  """Sources one by one, as many as there are.

  Attributes:
    sources: arrays [batch, length, width].
    done: how many sublayers have written.
  """

  sources: tuple[jax.Array, ...]
  done: int = struct.field(pytree_node=False)

  def read(self, module, name):
    return self._read(module, name, self.done, None)

  def write(self, y):
    *full, last = self.sources
    begun = self.done % self.block
    sources = (last + y,) if begun else (last, y)
    return self.replace(sources=(*full, *sources), done=self.done + 1)

  def tap(self, module, name):
    last = taps.tap(module, name, self.sources[-1])
    return self.replace(sources=(*self.sources[:-1], last))


class StackedStream(DepthStream):
  """Sources in one array that a scan can carry, of which the last are empty.

  The gradient of a scan keeps what it carries, all sources of every repeat:
  a loop keeps each source once.

  Attributes:
    sources: [1 + blocks, batch, length, width].
    done: how many sublayers have written, an int32 scalar.
  """

  sources: jax.Array
  done: jax.Array

  @property
  def _last(self) -> jax.Array:
    """The number of the last source that there is."""
    return (self.done + self.block - 1) // self.block

  def read(self, module, name):
    valid = jnp.arange(len(self.sources)) <= self._last
    return self._read(module, name, self.done, valid)

  def write(self, y):
    place = self.done // self.block + 1
    # What is not begun is zeros.
    old = jax.lax.dynamic_index_in_dim(self.sources, place, keepdims=False)
    return self._put(old + y, place).replace(done=self.done + 1)

  def tap(self, module, name):
    if not taps.tapped(module, name):
      return self
    last = jax.lax.dynamic_index_in_dim(
      self.sources, self._last, keepdims=False
    )
    return self._put(taps.tap(module, name, last), self._last)

  def _put(self, x, place) -> "StackedStream":
    sources = jax.lax.dynamic_update_index_in_dim(self.sources, x, place, 0)
    return self.replace(sources=sources)
