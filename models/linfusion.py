"""LinFusion: linear attention in the place of a trained model's own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from attention import features, linear_normalizers
from models import (
  layers,
  lina_layers,
  normalization,
  open_attention,
  positions,
  registry,
  taps,
)
from models.attends import Layout

Dtype = layers.Dtype

# Of the mean of phi(k), and so relative to the number of tokens: the released
# code's, chosen for float16.
EPSILON = 1e-4
# What a distilled model has beside the projections that it took over.
UPDATES = ("query_update", "key_update")
KINDS = ("network", "identity", "none")
PROJECTIONS = ("query", "key", "value", "out")
_XAVIER = nn.initializers.xavier_uniform()
# Xavier's, of queries, keys and values as one matrix.
_INTO_HEADS = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


class LinFusion(nn.Module):
  """Normalised linear attention that sees all tokens (arXiv 2409.02097).

  Queries and keys are projections of h + F(h), values of h, with an F of their
  own for each. With phi(t) = ELU(t) + 1 and w_ij = phi(q_i) . phi(k_j)

      out_i = sum_j w_ij v_j / (sum_j w_ij + N 1e-4)

  so that weights sum to one whatever the number N of tokens, which is what lets
  it go to other sizes. Its projections have the names and shapes of
  `grid_mixers.GridAttention`, whose trained ones it takes over.

  Attributes:
    heads: number of heads.
    update: what F is: a "network"; "identity", which doubles what is projected,
      as the released code has it without a network; or "none".
    reduction: channels of a token over those within the network: 1 as for
      Stable Diffusion 1.5 and 2.1, 16 as for SDXL.
    attention_bias: whether queries, keys and values have biases; those of
      Stable Diffusion have none.
    rotary_base: see `positions.rotate_grid`; 0 for none. Rotation comes before
      phi (ours: what was replaced there had no positions).
    implementation: see `attention.kernels.dispatch`.
    dtype: dtype of the computation; the attention is float32 within.
    param_dtype: dtype of the parameters.
  """

  heads: int
  update: str = "network"
  reduction: int = 1
  attention_bias: bool = True
  rotary_base: float = 0.0
  implementation: str = "auto"
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it.

    Raises:
      ValueError: if there is no such `update`, or `heads` or `reduction` do not
        divide the width.
    """
    self._check(x.shape[-1])
    updated = (self._updated(name, x) for name in UPDATES)
    q, k, v = (
      self._to_heads(name, y)
      for name, y in zip(PROJECTIONS[:3], (*updated, x), strict=True)
    )
    if self.rotary_base:
      q, k = (
        positions.rotate_grid(part, layout.grid, base=self.rotary_base)
        for part in (q, k)
      )
    out = self._attended(q, k, v).reshape(x.shape)
    return layers.Dense(
      x.shape[-1],
      kernel_init=_XAVIER,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="out",
    )(out)

  def _updated(self, name: str, x: jax.Array) -> jax.Array:
    """Returns x + F(x), of which F(x) is the tap `name`_values."""
    if self.update == "none":
      return x
    y = x
    if self.update == "network":
      hidden = x.shape[-1] // self.reduction
      y = Update(hidden, self.dtype, self.param_dtype, name=name)(x)
    return x + taps.tap(self, f"{name}_values", y)

  def _to_heads(self, name: str, x: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] to [batch, tokens, heads, dim]."""
    return layers.DenseGeneral(
      (self.heads, x.shape[-1] // self.heads),
      use_bias=self.attention_bias,
      kernel_init=_INTO_HEADS,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=name,
    )(x)

  def _attended(self, q, k, v) -> jax.Array:
    attend = functools.partial(
      attention.linear_attention,
      feature_map=features.elu_plus_one,
      normalizer=linear_normalizers.division(EPSILON),
    )
    return open_attention.linear(
      self, attend, q, k, v, implementation=self.implementation
    )

  def _check(self, width: int) -> None:
    if self.update not in KINDS:
      raise registry.unknown("update of LinFusion", self.update, KINDS)
    for field in ("heads", "reduction"):
      number = getattr(self, field)
      if number < 1 or width % number:
        raise ValueError(
          f"{field} is {number}; it must divide the width, {width}"
        )


class Update(nn.Module):
  """F: to fewer channels, norm, leaky ReLU, and back, as PyTorch begins.

  What it gives at first is not zero.

  Attributes:
    hidden: channels within.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  hidden: int
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it."""
    width = x.shape[-1]
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = lina_layers.dense(self.hidden, width, name="shrink", **dtypes)(x)
    x = normalization.LayerNorm(epsilon=1e-5, name="norm", **dtypes)(x)
    x = nn.leaky_relu(x, 0.01)
    return lina_layers.dense(width, self.hidden, name="expand", **dtypes)(x)
