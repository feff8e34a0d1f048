"""Probes in which one query reads the tokens by multi-head attention.

Each is the module that efficient probing's authors compare with, arXiv
2506.10178: fields have the values of their code, and what it makes and does not
use is left out unless LARS sees it. Where only the first query's output is
used, only that one is computed.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import lina_layers
from models.feed_forward import exact_gelu
from models.probes.parts import (
  Grid,
  Pooling,
  from_heads,
  plain_batch_norm,
  to_heads,
)


class SimPool(Pooling):
  """SimPool (arXiv 2309.06891): the mean token asks, normalised tokens answer.

  Attributes:
    heads: attention heads.
    linear: whether queries and keys are projected; without, the query is
      normalised too, and values are the tokens themselves ("esimpool").
  """

  heads: int = 1
  linear: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid, train
    norm = functools.partial(self.norm, epsilon=1e-6)
    mean = x.mean(1, keepdims=True)
    width = x.shape[-1]
    if self.linear:
      k = v = norm(x, "norm")
      q = self.dense(mean, width, "query", use_bias=False)
      k = self.dense(k, width, "key", use_bias=False)
    else:
      # One norm for both: the mean goes through it as a token more.
      both = norm(jnp.concatenate([mean, x], axis=1), "norm")
      q, k, v = both[:, :1], both[:, 1:], x
    q, k, v = (to_heads(y, self.heads) for y in (q, k, v))
    return from_heads(self.attend(q, k, v))[:, 0]


class ClipPool(Pooling):
  """CLIP's attention pool (arXiv 2103.00020) on normalised tokens.

  The mean of the tokens is one more, all have positions, and it asks.

  Attributes:
    heads: attention heads.
  """

  heads: int = 4

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]; N cannot change once there are weights.

    Raises:
      ValueError: for another number of tokens.
    """
    del grid, train
    width = x.shape[-1]
    init = nn.initializers.normal(width**-0.5)
    x = self.norm(x, "norm", epsilon=1e-6)
    x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
    if self.has_variable("params", "position"):
      stored = len(self.get_variable("params", "position"))
      if stored != x.shape[1]:
        raise ValueError(
          f"tokens are {x.shape[1] - 1} an image; the pool of CLIP has "
          f"positions for {stored - 1}"
        )
    x += self.token("position", width, init, count=x.shape[1])[None]
    qkv = lina_layers.dense(
      3 * width,
      width,
      kernel_init=init,
      bias_init=nn.initializers.zeros,
      name="qkv",
      **self.dtypes,
    )(x)
    q, k, v = (to_heads(y, self.heads) for y in jnp.split(qkv, 3, axis=-1))
    return self.dense(from_heads(self.attend(q[:, :1], k, v)), width, "out")[
      :, 0
    ]


class SiglipPool(Pooling):
  """The pool of SigLIP (arXiv 2303.15343): a learned query, then an MLP.

  Attributes:
    heads: attention heads.
  """

  heads: int = 8

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid, train
    width = x.shape[-1]
    init = nn.initializers.truncated_normal(width**-0.5)
    q = self.dense(self.token("query_token", width, init)[None], width, "query")
    k, v = jnp.split(self.dense(x, 2 * width, "key_value"), 2, axis=-1)
    q, k, v = (to_heads(y, self.heads) for y in (q, k, v))
    x = self.dense(from_heads(self.attend(q, k, v)), width, "out")
    mlp = lina_layers.Mlp(
      4 * width, width, exact_gelu, name="mlp", **self.dtypes
    )
    return (x + mlp(x))[:, 0]


class AimPool(Pooling):
  """AIM's attentive probe (arXiv 2401.08541): tokens are batch-normalised.

  Attributes:
    heads: attention heads; AIM has 12, the comparison of probes 16.
  """

  heads: int = 16

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid
    width = x.shape[-1]
    x = plain_batch_norm(train, name="norm")(x).astype(self.dtype)
    q = self.token("query_token", width)[None]
    k = self.dense(x, width, "key", use_bias=False)
    v = self.dense(x, width, "value", use_bias=False)
    q, k, v = (to_heads(y, self.heads) for y in (q, k, v))
    return from_heads(self.attend(q, k, v))[:, 0]


class CocaPool(Pooling):
  """CoCa's pool (arXiv 2205.01917): heads ask, with one key and value for all.

  The authors' code has 196 queries and uses the first: the others have no
  gradient, but are part of the array whose norm LARS takes.

  Attributes:
    heads: heads of the query.
    head_dim: channels of a head.
    queries: that there are.
  """

  heads: int = 8
  head_dim: int = 64
  queries: int = 196

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid, train
    width, inner = x.shape[-1], self.heads * self.head_dim
    queries = self.token(
      "queries", width, nn.initializers.normal(1.0), count=self.queries
    )
    # A layer norm without biases.
    norm = nn.LayerNorm(
      epsilon=1e-5,
      use_bias=False,
      use_fast_variance=False,
      name="norm",
      **self.dtypes,
    )
    q = self.dense(norm(queries[None, :1]), inner, "query", use_bias=False)
    kv = self.dense(x, 2 * self.head_dim, "key_value", use_bias=False)
    k, v = (to_heads(y, 1) for y in jnp.split(kv, 2, axis=-1))
    x = from_heads(self.attend(to_heads(q, self.heads), k, v))
    return self.dense(x, width, "out", use_bias=False)[:, 0]


class CaitPool(Pooling):
  """CaiT's class attention (arXiv 2103.17239): the class token asks all.

  Attributes:
    heads: attention heads.
    layer_scale: what both branches are multiplied by at the start.
  """

  heads: int = 4
  layer_scale: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid, train
    batch, _, width = x.shape
    token = self.token("class_token", width)[None]
    token = jnp.broadcast_to(token, (batch, 1, width))
    y = self.norm(jnp.concatenate([token, x], axis=1), "attention_norm", 1e-6)
    q = self.dense(y[:, :1], width, "query")
    k, v = self.dense(y, width, "key"), self.dense(y, width, "value")
    q, k, v = (to_heads(y, self.heads) for y in (q, k, v))
    y = self.dense(from_heads(self.attend(q, k, v)), width, "out")
    token += self._scaled(y, "attention_layer_scale")
    mlp = lina_layers.Mlp(
      4 * width, width, exact_gelu, name="mlp", **self.dtypes
    )
    y = mlp(self.norm(token, "mlp_norm", 1e-6))
    token += self._scaled(y, "mlp_layer_scale")
    return self.norm(token, "norm")[:, 0]

  def _scaled(self, y, name) -> jax.Array:
    init = nn.initializers.constant(self.layer_scale)
    scale = self.param(name, init, y.shape[-1:], self.param_dtype)
    return y * scale[None, None].astype(y.dtype)


class JepaPool(Pooling):
  """V-JEPA's attentive pooler (arXiv 2404.08471): a cross-attention block.

  Attributes:
    heads: attention heads; V-JEPA has 12, the comparison of probes 16.
  """

  heads: int = 16

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid, train
    width = x.shape[-1]
    token = self.token("query_token", width)[None]
    x = self.norm(x, "attention_norm")
    q = self._dense(token, width, "query")
    k, v = jnp.split(self._dense(x, 2 * width, "key_value"), 2, axis=-1)
    q, k, v = (to_heads(y, self.heads) for y in (q, k, v))
    y = self._dense(from_heads(self.attend(q, k, v)), width, "out", 2**-0.5)
    token = token + y
    y = self._dense(self.norm(token, "mlp_norm"), 4 * width, "expand")
    y = self._dense(exact_gelu(y), width, "shrink", 2**-0.5)
    return (token + y)[:, 0]

  def _dense(self, x, features, name, factor=1.0) -> jax.Array:
    return lina_layers.dense(
      features,
      x.shape[-1],
      kernel_init=nn.initializers.normal(0.02 * factor),
      bias_init=nn.initializers.zeros,
      name=name,
      **self.dtypes,
    )(x)


class CaePool(Pooling):
  """CAE's attentive probe (arXiv 2202.03026): all three are normalised.

  The query begins at zero. A fourth norm of the authors' code is not used.

  Attributes:
    heads: attention heads.
  """

  heads: int = 8

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D]."""
    del grid, train
    width = x.shape[-1]
    token = self.token("query_token", width, nn.initializers.zeros)[None]
    inputs = {"query": token, "key": x, "value": x}
    q, k, v = (
      to_heads(
        self.dense(self.norm(y, f"{name}_norm"), width, name, use_bias=False),
        self.heads,
      )
      for name, y in inputs.items()
    )
    return self.dense(from_heads(self.attend(q, k, v)), width, "out")[:, 0]
