"""Vision Remember: image tokens look at the features that they were made of.

"Vision Remember: Alleviating Visual Forgetting in Efficient MLLM with Vision
Feature Resample" (arXiv 2506.03928). Its text and code were not to be had. That
each token attends to its own region of features of several layers is what the
abstract and reviews say; the dense layers and norms are those of TokenPacker's
code (2407.02392), the nearest published one; that the block begins as the
identity is ours, and so is global attention as a control. The second version's
attention among image tokens and a mean of the text is not here.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from models import (
  feed_forward,
  layers,
  normalization,
  open_attention,
  registry,
  taps,
)

REGIONS = ("local", "global")


class VisionRemember(nn.Module):
  """h + project(attend(norm(query(h)), features)).

  Keys and values are each of a perceptron of the features and a norm, and then,
  as torch's MultiheadAttention has them, of projections with biases.

  Attributes:
    width: channels of the attention, those of a feature map.
    heads: of the attention, a divisor of `width`.
    region: "local", where a token sees the cell of features that it was made
      of, or "global", where it sees all.
    implementation: of global attention, see `attention.kernels.dispatch`.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  width: int
  heads: int
  region: str = "local"
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, features: jax.Array) -> jax.Array:
    """Maps image tokens [batch, rows, columns, channels] to ones like them.

    Args:
      h: hidden states of the image tokens, on their grid.
      features: [batch, key_rows, key_columns, inputs], on a grid whose sides
        are multiples.

    Raises:
      ValueError: for fields or shapes that do not fit.
    """
    if self.region not in REGIONS:
      raise registry.unknown("region", self.region, REGIONS)
    if self.heads < 1 or self.width % self.heads:
      raise ValueError(
        f"heads is {self.heads}, which does not divide width {self.width}"
      )
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    dense = functools.partial(layers.Dense, **dtypes)
    norm = functools.partial(normalization.LayerNorm, epsilon=1e-6, **dtypes)

    def perceptron(x, name, width, **options):
      x = feed_forward.exact_gelu(dense(width, name=f"{name}_expand")(x))
      return dense(width, name=f"{name}_shrink", **options)(x)

    def to_heads(x, name):
      x = dense(self.width, name=f"{name}_heads")(norm(name=f"{name}_norm")(x))
      return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)

    query = dense(self.width, use_bias=False, name="query")(h)
    q = to_heads(query, "query")
    k = to_heads(perceptron(features, "key", self.width), "key")
    v = to_heads(perceptron(features, "value", self.width), "value")
    out = self._attend(q, k, v)
    out = out.reshape(*h.shape[:-1], self.width)
    out = dense(self.width, name="out")(out)
    zeros = nn.initializers.zeros
    out = perceptron(out, "project", h.shape[-1], kernel_init=zeros)
    return taps.tap(self, "hidden_state", h + out)

  def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attends in [batch, rows, columns, heads, dim]."""
    rows, columns = q.shape[1:3]
    if self.region == "local":
      return taps.with_open_map(
        self,
        lambda: attention.local_region_attention(q, k, v),
        lambda: attention.local_region_weights(q, k),
        lambda weights: attention.apply_local_region_weights(
          weights, v, rows=rows, columns=columns
        ),
      )
    flat = lambda x: x.reshape(len(x), -1, *x.shape[3:])
    out = open_attention.dot_product(
      self, flat(q), flat(k), flat(v), implementation=self.implementation
    )
    return out.reshape(q.shape)
