"""Triangle attention over pairs, and networks that imitate its bias.

A small model of the kind of AlphaFold's pair stack: pairs of tokens have
channels, and those of one row attend to each other, biased by the third side of
the triangle. In "FlashBias" (arXiv 2505.12044) two small networks a layer learn
factors of that bias, so that it is never read as [tokens, tokens]; the sizes
there are 256 hidden channels and rank 96, the networks those of its code.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from attention import finishes, scores
from models import layers, normalization, registry, taps

BIASES = ("pair", "factors", "none")


class PairModel(taps.Tapped):
  """From numbers of tokens and of pairs to logits of pairs.

  Layers alternate between the two ways round: in even ones (i, j) attends to
  (i, k), biased by (j, k), in odd ones to (k, j), biased by (k, i). The bias of
  a layer is its tap "bias".

  Attributes:
    classes: number of logits.
    width: channels of a pair.
    depth: layers.
    heads: of the attention.
    expansion: hidden width of the feed-forward layers over `width`.
    bias: "pair" for what a projection of the pairs gives, "factors" for the
      product of what the networks give, "none" for none.
    bias_rank: rank R of the factors; 0 for a model without networks.
    factored_layers: how many of the first layers take factors, the others keep
      "pair"; 0 for all.
    hidden: channels within the networks.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    dtype: dtype of the computation; factors, softmax and logits are float32.
    param_dtype: dtype of the parameters.
    remat: whether layers are computed again in the backward pass.
  """

  classes: int = 8
  width: int = 32
  depth: int = 4
  heads: int = 4
  expansion: int = 2
  bias: str = "pair"
  bias_rank: int = 0
  factored_layers: int = 0
  hidden: int = 64
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32
  remat: bool = False

  def setup(self):
    if self.bias not in BIASES:
      raise registry.unknown("bias", self.bias, BIASES)
    if self.bias == "factors" and not self.bias_rank:
      raise ValueError(
        "bias is 'factors', which needs networks: bias_rank is 0, and must be "
        "at least 1"
      )
    if self.width % self.heads:
      raise ValueError(
        f"heads is {self.heads}, which does not divide width {self.width}"
      )
    layer = nn.remat(PairLayer) if self.remat else PairLayer
    first = self.factored_layers or self.depth
    late = "pair" if self.bias == "factors" else self.bias
    self.embed = self._dense(self.width)
    self.layer = [
      layer(
        self.heads,
        self.expansion,
        self.bias if i < first else late,
        self.bias_rank if i < first else 0,
        self.hidden,
        self.implementation,
        self.dtype,
        self.param_dtype,
      )
      for i in range(self.depth)
    ]
    self.norm = _norm(self)
    self.logits = self._dense(self.classes)

  def __call__(
    self, tokens: jax.Array, pairs: jax.Array, train: bool = False
  ) -> jax.Array:
    """Returns logits of pairs, the same both ways round.

    Args:
      tokens: [batch, length, any], what the networks see of single tokens.
      pairs: [batch, length, length, any].
      train: makes no difference.

    Returns:
      float32 [batch, length, length, classes].
    """
    del train
    return self._run(tokens, pairs)[0]

  def imitation(self, tokens: jax.Array, pairs: jax.Array) -> jax.Array:
    """Returns how far products of factors are from the biases.

    Args:
      tokens: as for the call.
      pairs: as for the call; what layers see follows from `bias`, which is
        "pair" where the trunk is to be imitated as it is.

    Returns:
      float32 [batch], the mean square of each layer, summed.
    """
    if not self.bias_rank:
      raise ValueError(
        "bias_rank is 0: a model without networks has nothing that imitates"
      )
    return self._run(tokens, pairs)[1]

  def example_inputs(self) -> dict[str, jax.Array]:
    """What `init` takes where the data do not say more: four landmarks."""
    return {"tokens": jnp.zeros((1, 2, 4)), "pairs": jnp.zeros((1, 2, 2, 3))}

  def _run(self, tokens, pairs):
    x = self.embed(pairs.astype(self.dtype))
    error = jnp.zeros(x.shape[0], jnp.float32)
    for i, layer in enumerate(self.layer):
      # [batch, i, j, width], or with i and j changed.
      x = x.swapaxes(1, 2) if i % 2 else x
      x, own = layer(x, tokens)
      x = x.swapaxes(1, 2) if i % 2 else x
      error += own
    x = self.norm(x + x.swapaxes(1, 2))
    return self.logits(x).astype(jnp.float32), error

  def _dense(self, width: int) -> nn.Module:
    return layers.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype)


class PairLayer(nn.Module):
  """Triangle attention and a feed-forward layer, each with a residual."""

  heads: int
  expansion: int
  bias: str
  bias_rank: int
  hidden: int
  implementation: str
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(
    self, x: jax.Array, tokens: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Maps pairs [batch, i, j, width], and says how far factors are off."""
    width = x.shape[-1]
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    y = _norm(self, name="attention_norm")(x)
    score_mods, error = self._bias(y, tokens)
    q, k, v = (
      layers.DenseGeneral(
        (self.heads, width // self.heads), use_bias=False, name=name, **dtypes
      )(y)
      for name in ("query", "key", "value")
    )
    gate = layers.DenseGeneral(q.shape[3:], name="gate", **dtypes)(y)
    # All rows of all examples are the batch of the attention.
    rows = [z.reshape(-1, *z.shape[2:]) for z in (q, k, v)]
    gated = finishes.gate(gate.reshape(rows[0].shape))
    look = functools.partial(
      attention.attention_weights, *rows[:2], score_mods=score_mods
    )

    def attend():
      return attention.dot_product_attention(
        *rows,
        score_mods=score_mods,
        finish=gated,
        implementation=self.implementation,
      )

    def apply(weights):
      seen = attention.apply_attention_weights(weights, rows[2])
      return gated.apply(seen.astype(jnp.float32), None).astype(seen.dtype)

    out = taps.with_open_map(self, attend, look, apply, scores=True)
    out = out.reshape(q.shape)
    x += layers.DenseGeneral(width, axis=(-2, -1), name="out", **dtypes)(out)
    y = _norm(self, name="ffn_norm")(x)
    y = layers.Dense(self.expansion * width, name="expand", **dtypes)(y)
    return x + layers.Dense(width, name="shrink", **dtypes)(nn.gelu(y)), error

  def _bias(self, y, tokens):
    """What is added to scores, and the mean square of the error [batch]."""
    batch, length = y.shape[:2]
    error = jnp.zeros(batch, jnp.float32)
    factors = self._factors(y, tokens) if self.bias_rank else None
    # Nobody asks for it when factors are all that is used, so XLA drops it.
    bias = layers.Dense(
      self.heads,
      use_bias=False,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="bias",
    )(y)
    # [batch, heads, length, length]
    bias = jnp.moveaxis(bias, -1, 1).astype(jnp.float32)
    bias = taps.tap(self, "bias", bias)
    if factors is not None:
      product = jnp.einsum("bqhr,bkhr->bhqk", *factors, precision="highest")
      error = jnp.mean(jnp.square(product - bias), (1, 2, 3))

    def by_row(array):
      return jnp.repeat(array, length, axis=0)

    match self.bias:
      case "pair":
        return (scores.bias(by_row(bias)),), error
      case "factors":
        return (scores.factored_bias(*map(by_row, factors)),), error
      case _:
        return (), error

  def _factors(self, y, tokens):
    """[batch, length, heads, rank] each, of what a token can know."""
    tokens = tokens.astype(jnp.float32)
    y = y.astype(jnp.float32)
    factors = []
    for name, axis in (("query", 2), ("key", 1)):
      seen = jnp.concatenate([y.mean(axis), tokens], axis=-1)
      width = self.heads * self.bias_rank
      factor = FactorNetwork(
        self.hidden, width, self.param_dtype, name=f"{name}_network"
      )(seen)
      factors.append(
        factor.reshape(*factor.shape[:2], self.heads, self.bias_rank)
      )
    return factors


class FactorNetwork(nn.Module):
  """Three dense layers without biases, tanh between, in float32."""

  hidden: int
  width: int
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, width in enumerate((self.hidden, self.hidden, self.width)):
      x = layers.Dense(
        width,
        use_bias=False,
        param_dtype=self.param_dtype,
        name=f"dense_{i}",
      )(x if i == 0 else jnp.tanh(x))
    return x


def _norm(module: nn.Module, name: str | None = None) -> nn.Module:
  return normalization.LayerNorm(
    dtype=module.dtype, param_dtype=module.param_dtype, name=name
  )


KIND = "pair"
VARIANTS: Mapping[str, tuple[type[nn.Module], dict[str, Any]]] = {
  "pair_attention": (PairModel, {}),
}
