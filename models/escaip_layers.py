"""Layers of EScAIP: what an edge is told, attention over neighbours, heads."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import masks, scores
from models import layers, normalization, open_attention, taps
from models.atom_graphs import Graph
from models.feed_forward import exact_gelu

# PyTorch's default, the epsilon of float32.
RMSNorm = functools.partial(normalization.RMSNorm, epsilon=2.0**-23)
_xavier = nn.initializers.xavier_uniform()


class Seen(NamedTuple):
  """What layers see of structures beside their own features.

  Attributes:
    graph: the neighbours.
    numbers: of atoms, int32 [B, A].
    basis: of distances, [B, A, M, any].
    order: of bonds around atoms, [B, A, degrees].
    cosines: of angles between neighbours, [B, A, M, M]; None if not wanted.
    harmonics: of directions, a list of [B, A, M, 2 l + 1]; None likewise.
  """

  graph: Graph
  numbers: jax.Array
  basis: jax.Array
  order: jax.Array
  cosines: jax.Array | None
  harmonics: Sequence[jax.Array] | None


class Fields(NamedTuple):
  """What all layers have in common; see `models.escaip.EScAIP`."""

  width: int
  heads: int
  elements: int
  told_widths: tuple[int, int, int]
  angles: str
  mixing: str
  frequency_channels: tuple[int, ...]
  dropout_rate: float
  implementation: str
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @property
  def dtypes(self) -> dict[str, layers.Dtype]:
    return {"dtype": self.dtype, "param_dtype": self.param_dtype}


class Activated(nn.Module):
  """A dense layer, GELU and dropout: "Linear" of the paper's code."""

  width: int
  fields: Fields

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = layers.Dense(
      self.width, kernel_init=_xavier, name="dense", **self.fields.dtypes
    )(x)
    return _dropout(self, exact_gelu(x), train)


class ActivatedPairs(nn.Module):
  """`Activated` of what an edge, its source and its target have, side by side.

  The products of what belongs to an atom are made once an atom, and looked up,
  not once for each of its edges; but for rounding it is the same.
  """

  width: int
  fields: Fields

  @nn.compact
  def __call__(
    self,
    graph: Graph,
    edge: jax.Array | None,
    source: jax.Array,
    target: jax.Array,
    train: bool,
  ) -> jax.Array:
    """Maps [B, A, M, any], [B, A, any] and [B, A, any] to [B, A, M, width]."""
    parts = [x for x in (edge, source, target) if x is not None]
    shape = (sum(x.shape[-1] for x in parts), self.width)
    kernel = self.param("kernel", _xavier, shape, self.fields.param_dtype)
    bias = self.param(
      "bias", nn.initializers.zeros, shape[1:], self.fields.param_dtype
    )
    kernel, bias, *parts = nn.dtypes.promote_dtype(
      kernel, bias, *parts, dtype=self.fields.dtype
    )
    ends = [sum(x.shape[-1] for x in parts[: i + 1]) for i in range(len(parts))]
    kernels = jnp.split(kernel, ends[:-1])
    *of_edges, of_sources, of_targets = (
      x @ own for x, own in zip(parts, kernels, strict=True)
    )
    of_targets += bias[None, None]
    # [B, A, M, width]
    y = graph.of_sources(of_sources) + of_targets[:, :, None]
    for own in of_edges:
      y += own
    return _dropout(self, exact_gelu(y), train)


class FeedForward(nn.Module):
  """Two dense layers with GELU between, and dropout after each.

  Attributes:
    expansion: hidden width over that of the input.
    fields: of the model.
    kernel_init: of both kernels.
  """

  expansion: int
  fields: Fields
  kernel_init: layers.Initializer = _xavier

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dense = functools.partial(
      layers.Dense, kernel_init=self.kernel_init, **self.fields.dtypes
    )
    y = exact_gelu(dense(self.expansion * x.shape[-1], name="expand")(x))
    y = _dropout(self, y, train)
    y = dense(x.shape[-1], name="shrink")(y)
    return _dropout(self, y, train)


class EdgeInputs(nn.Module):
  """What an edge is told of distance, bond orders and atoms, to `width`.

  Each layer has embeddings of its own; in the order of the paper's code:
  distance, order of the source, its atom, and those of the target.
  """

  fields: Fields

  @nn.compact
  def __call__(self, seen: Seen, train: bool) -> jax.Array:
    """Returns [B, A, M, width]."""
    distance_width, order_width, atom_width = self.fields.told_widths
    distance = Activated(distance_width, self.fields, name="distance")(
      seen.basis, train
    )
    ends = [
      jnp.concatenate(
        [
          Activated(order_width, self.fields, name=f"{end}_order")(
            seen.order, train
          ),
          nn.Embed(
            self.fields.elements,
            atom_width,
            embedding_init=_small_uniform,
            name=f"{end}_atom",
            **self.fields.dtypes,
          )(seen.numbers),
        ],
        axis=-1,
      )
      for end in ("source", "target")
    ]
    return ActivatedPairs(self.fields.width, self.fields, name="join")(
      seen.graph, distance, *ends, train
    )


class Input(nn.Module):
  """The first features: of edges, and of atoms their mean over neighbours."""

  fields: Fields

  @nn.compact
  def __call__(self, seen: Seen, train: bool) -> tuple[jax.Array, jax.Array]:
    """Returns (nodes, edges), [B, A, width] and [B, A, M, width]."""
    edges = EdgeInputs(self.fields, name="inputs")(seen, train)
    y = RMSNorm(name="norm", **self.fields.dtypes)(edges)
    edges += FeedForward(1, self.fields, name="ffn")(y, train)
    nodes = seen.graph.mean(edges)
    return _both_norms(self, "out", nodes, edges)


class Block(nn.Module):
  """Attention over the neighbours of each atom, then feed-forward layers.

  Attributes:
    fields: of the model.
    last_edges: whether what becomes of edges is used by a layer behind.
  """

  fields: Fields
  last_edges: bool = True

  @nn.compact
  def __call__(
    self, nodes: jax.Array, edges: jax.Array, seen: Seen, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Maps (nodes, edges) to arrays like them."""
    fields = self.fields
    y = RMSNorm(name="attention_norm", **fields.dtypes)(nodes)
    told = EdgeInputs(fields, name="inputs")(seen, train)
    between = ActivatedPairs(fields.width, fields, name="nodes")(
      seen.graph, None, y, y, train
    )
    message = jnp.concatenate([told, between], axis=-1)
    message = exact_gelu(
      layers.Dense(
        fields.width, kernel_init=_xavier, name="message", **fields.dtypes
      )(message)
    )
    if fields.mixing == "attention":
      out = NeighborAttention(fields, name="attention")(message, seen)
    else:
      # As many parameters, but for the width: no edge hears of another.
      out = FeedForward(2, fields, name="no_attention")(message, train)
    nodes += seen.graph.mean(out)
    edges += out
    y, z = _both_norms(self, "ffn", nodes, edges)
    nodes += FeedForward(2, fields, name="node_ffn")(y, train)
    if self.last_edges:
      edges += FeedForward(2, fields, name="edge_ffn")(z, train)
    nodes = taps.tap(self, "hidden_state", nodes)
    return nodes, taps.tap(self, "edges", edges)


class NeighborAttention(nn.Module):
  """Self-attention among the neighbours of each atom: the batch is the atoms.

  A score is told the angle between the two neighbours: "cosine" adds its cosine
  times a learned number, the same for all heads; "frequency" gates the channels
  of queries and keys, see `gated`.
  """

  fields: Fields

  @nn.compact
  def __call__(self, messages: jax.Array, seen: Seen) -> jax.Array:
    """Maps [B, A, M, width] to an array like it."""
    fields, shape = self.fields, messages.shape
    heads, dim = fields.heads, fields.width // fields.heads
    # One kernel, since its width is in the range of the initial values.
    qkv = layers.Dense(
      3 * fields.width, kernel_init=_xavier, name="qkv", **fields.dtypes
    )(messages)
    # Each [B A, M, heads, dim].
    q, k, v = (
      x.reshape(-1, shape[2], heads, dim) for x in jnp.split(qkv, 3, axis=-1)
    )
    mods = ()
    if fields.angles == "cosine":
      factor = self.param(
        "angle_scale", nn.initializers.ones, (), fields.param_dtype
      )
      angle = seen.cosines.reshape(-1, 1, shape[2], shape[2])
      mods = (scores.bias(angle * factor.astype(angle.dtype)),)
    elif fields.angles == "frequency":
      q, k = (
        gated(x, seen.harmonics, fields.frequency_channels) for x in (q, k)
      )
    slots = {
      "score_mods": mods,
      "mask": masks.padding(seen.graph.count.reshape(-1)),
    }
    out = open_attention.dot_product(
      self, q, k, v, implementation=fields.implementation, **slots
    )
    return layers.Dense(
      fields.width, kernel_init=_xavier, name="out", **fields.dtypes
    )(out.reshape(shape))


def gated(
  x: jax.Array, harmonics: Sequence[jax.Array], channels: Sequence[int]
) -> jax.Array:
  """Multiplies channels by spherical harmonics of each token's direction.

  Of segment l, whose `channels[l]` channels are repeated 2 l + 1 times, the
  copies are multiplied by Y_lm / sqrt(2 l + 1) (EScAIP's second version). The
  product of a query and a key so made is sum_l P_l(cos theta) <q_l, k_l>, theta
  the angle between their directions: rotations do not change it.

  Args:
    x: queries or keys [N, M, heads, dim].
    harmonics: of l = 0, 1, ..., [..., M, 2 l + 1], with N in all before M.
    channels: of each l; they sum to dim.

  Returns:
    [N, M, heads, sum_l (2 l + 1) channels[l]].
  """
  ends = [sum(channels[: i + 1]) for i in range(len(channels))]
  made = []
  for own, y in zip(jnp.split(x, ends[:-1], -1), harmonics, strict=True):
    y = y.reshape(*x.shape[:2], 1, 1, -1).astype(x.dtype)
    repeated = own[..., None] * y / y.shape[-1] ** 0.5
    made.append(repeated.reshape(*own.shape[:3], -1))
  return jnp.concatenate(made, axis=-1)


class Readout(nn.Module):
  """x + FF(RMS(x)): what a layer hands to the end."""

  fields: Fields

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = RMSNorm(name="norm", **self.fields.dtypes)(x)
    return x + FeedForward(2, self.fields, name="ffn")(y, train)


class Projection(nn.Module):
  """Makes one feature of the readouts of all layers, side by side."""

  fields: Fields

  @nn.compact
  def __call__(self, readouts: Sequence[jax.Array], train: bool) -> jax.Array:
    x = jnp.concatenate(readouts, axis=-1)
    x = RMSNorm(name="norm", **self.fields.dtypes)(x)
    # Its code gives this one no dropout.
    x = Activated(
      self.fields.width, self.fields._replace(dropout_rate=0.0), name="join"
    )(x, train)
    return RMSNorm(name="out_norm", **self.fields.dtypes)(x)


class Output(nn.Module):
  """Dense(x + FF(x)), without a bias, in float32: a head.

  Attributes:
    width: numbers that come out.
    gain: of the initial values.
    fields: of the model.
  """

  width: int
  fields: Fields
  gain: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    init = nn.initializers.variance_scaling(self.gain**2, "fan_avg", "uniform")
    x += FeedForward(2, self.fields, init, name="ffn")(x, train)
    return layers.Dense(
      self.width,
      use_bias=False,
      kernel_init=init,
      param_dtype=self.fields.param_dtype,
      name="out",
    )(x.astype(jnp.float32))


def _both_norms(module, name, nodes, edges):
  """Normalises nodes and edges, each with a scale of its own."""
  return tuple(
    RMSNorm(name=f"{name}_{kind}_norm", **module.fields.dtypes)(x)
    for kind, x in (("node", nodes), ("edge", edges))
  )


def _dropout(module, x, train):
  """Drops channels. Weights of the attention, as in the code, are not."""
  rate = module.fields.dropout_rate
  return nn.Dropout(rate, deterministic=not train)(x) if rate else x


def _small_uniform(key, shape, dtype):
  return jax.random.uniform(key, shape, dtype, -1e-3, 1e-3)
