"""p-adapter: a bottleneck that passes messages along the map of attention."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import p_laplacian
from models import layers, registry
from models.insertion import Insert, Site
from models.inserts import features

GRAPHS = ("self", "bipartite")
# The exponent is a parameter, and must stay in the open range of the method.
_LEAST_EXPONENT = 1.001


class PAdapter(Insert):
  """Adds up(gelu(gate(h)) * F') to the output h of attention.

  "p-Laplacian Adaptation" (arXiv 2312.10613). It is put at the projection of
  the output, as "mixer/out". Nodes are what the projection of values gives, and
  in the graph "bipartite" of cross-attention queries besides. The layer that it
  is put at takes nodes to the residual stream, "features" to the bottleneck,
  and `attention.p_laplacian` passes messages in each head: F'. Edges are the
  map of the attention, without dropout; so attention computes it as a whole,
  and no kernel runs.

  mu = mu0 (2 + tanh(smoothing)); "smoothing" and the exponent p are parameters,
  which weight decay reaches as in the released code. Here p is kept within
  1.001 and 2, which is our choice.

  A row that is decoded token by token has no graph of all its tokens; a call
  with a cache is an error.

  Attributes:
    width: channels of the bottleneck, a multiple of the heads.
    exponent: p at first.
    mu: mu0.
    graph: "self", or "bipartite".
    pooled: in the graph "bipartite" values and columns of the map are averaged
      to so many (`attention.p_laplacian.adaptive_average`); 0 for all.
    self_edges: see `attention.p_laplacian.aggregate`.
    zero_init: whether "up" begins with zeros, so that the model is the old one
      at first. The released code begins with random numbers.
    value: path of the layer that gives the values, beside this one.
    query: likewise.
  """

  width: int = 16
  exponent: float = 1.75
  mu: float = 0.1
  graph: str = "self"
  pooled: int = 0
  self_edges: bool = True
  zero_init: bool = True
  value: str = "value"
  query: str = "query"

  def reads(self):
    both = (self.value, "attention_weights")
    return both if self.graph == "self" else (*both, self.query)

  def before(self, site: Site, x: jax.Array) -> jax.Array:
    """Gives the projection the nodes too, behind the tokens of x.

    Raises:
      ValueError: for an option out of its range, and if values or queries are
        not of the width of x.
    """
    self._check(site)
    return jnp.concatenate([x, *self._nodes(site, x)], axis=1)

  @nn.compact
  def after(self, site: Site, x: jax.Array, y: jax.Array) -> jax.Array:
    """Adds messages to the output of attention.

    Args:
      site: where it stands.
      x: output of attention, [batch, queries, heads, dim] or flat.
      y: of the projection, [batch, queries + nodes, channels].

    Raises:
      ValueError: if the map of attention is not of the nodes, as with a cache,
        or the width no multiple of the heads.
    """
    lengths = [x.shape[1], *(node.shape[1] for node in self._nodes(site, x))]
    h, *nodes = jnp.split(y, list(itertools.accumulate(lengths))[:-1], axis=1)
    dense = functools.partial(
      layers.Dense,
      dtype=h.dtype,
      param_dtype=features.param_dtype(site.module),
    )
    narrow = dense(self.width, name="features")
    passed = self._passed(site, [narrow(node) for node in nodes])
    gate = nn.gelu(dense(self.width, name="gate")(h), approximate=False)
    zeros = {"kernel_init": nn.initializers.zeros} if self.zero_init else {}
    up = dense(h.shape[-1], name="up", **zeros)
    return h + up(gate * passed.astype(h.dtype))

  def _passed(self, site, nodes):
    """F', [batch, queries, width]."""
    weights = site.value("attention_weights")
    heads = weights.shape[1]
    if self.width % heads:
      raise ValueError(
        f"width is {self.width}; p_adapter at {site.place} needs a multiple of "
        f"{heads}, the heads of the attention"
      )
    self._check_map(site, weights, nodes)
    exponent = self._scalar("exponent", self.exponent)
    exponent = jnp.clip(exponent, _LEAST_EXPONENT, 2)
    mu = self.mu * (2 + jnp.tanh(self._scalar("smoothing", 0.0)))
    split = [
      node.reshape(*node.shape[:2], heads, -1).swapaxes(1, 2) for node in nodes
    ]
    if self.graph == "self":
      out = p_laplacian.aggregate(
        weights, *split, exponent, mu, self_edges=self.self_edges
      )
    else:
      if self.pooled:
        weights = p_laplacian.adaptive_average(weights, self.pooled, -1)
        split[1] = p_laplacian.adaptive_average(split[1], self.pooled, 2)
      out = p_laplacian.aggregate_bipartite(weights, *split, exponent, mu)
    return out.swapaxes(1, 2).reshape(*nodes[0].shape[:2], self.width)

  def _scalar(self, name, value):
    return self.param(name, nn.initializers.constant(value), (), jnp.float32)

  def _nodes(self, site, x):
    """Nodes before the projection, with the channels of x for each token."""
    names = {"self": (self.value,), "bipartite": (self.query, self.value)}
    return [self._node(site, x, name) for name in names[self.graph]]

  def _node(self, site, x, name):
    value = site.value(name)
    if value.ndim == x.ndim == 4 and x.shape[2] % value.shape[2] == 0:
      # Heads that share keys and values.
      value = jnp.repeat(value, x.shape[2] // value.shape[2], axis=2)
    if value.ndim != x.ndim and value.size % x[0, 0].size == 0:
      value = value.reshape(*value.shape[:2], *x.shape[2:])
    if value.shape[2:] != x.shape[2:] or len(value) != len(x):
      raise ValueError(
        f"{name!r} gives {value.shape}, but the layer {site.place} reads "
        f"{x.shape}; p_adapter needs values of the width of the output"
      )
    return value.astype(x.dtype)

  def _check(self, site):
    if self.graph not in GRAPHS:
      raise registry.unknown("graph of p_adapter", self.graph, GRAPHS)
    for name, fits, wanted in (
      ("width", self.width >= 1, "at least 1"),
      ("exponent", 1 < self.exponent <= 2, "above 1 and at most 2"),
      ("mu", self.mu > 0, "positive"),
      ("pooled", self.pooled >= 0, "0 or more"),
    ):
      if not fits:
        raise ValueError(
          f"{name} of p_adapter at {site.place} is {getattr(self, name)}; it "
          f"must be {wanted}"
        )
    if self.pooled and self.graph == "self":
      raise ValueError(
        f"pooled is {self.pooled}, but graph='self' has one set of nodes; it "
        "needs graph='bipartite'"
      )

  def _check_map(self, site, weights, nodes):
    wanted = (nodes[0].shape[1], nodes[-1].shape[1])
    if weights.shape[2:] != wanted:
      raise ValueError(
        f"the map of attention is {weights.shape}, but there are {wanted} "
        f"nodes at {site.place}; p_adapter needs all tokens of a row in one "
        "call, without a cache"
      )
