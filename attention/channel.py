"""Channel attention: channels of a head attend to each other over all places.

"Multi-Dconv head transposed attention" of Restormer (arXiv 2111.09881, equation
1 and section 3.1; the norms of queries and keys are those of its code). The map
is [channels, channels], so work and memory are linear in the number of places.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks

# As PyTorch's `normalize`: a vector that is shorter keeps what it is, divided
# by this.
LEAST_NORM = 1e-12


def channel_attention(
  q: Float[Array, "batch length heads dim"],
  k: Float[Array, "batch length heads kv_dim"],
  v: Float[Array, "batch length heads kv_dim"],
  temperature: Float[Array, " heads"],
) -> Float[Array, "batch length heads dim"]:
  """Returns o_c = sum_e softmax_e(temperature * cos(q_c, k_e)) v_e.

  q_c is channel c of the queries at all places, [length], and cos the cosine of
  two such vectors: there is no factor dim ** -0.5. A vector of zeros has the
  cosine 0 with all.

  Args:
    q: queries; an image is its places in any order, the same for all three.
    k: keys; their channels need not be as many.
    v: values.
    temperature: factor of the cosines of each head, which Restormer learns.

  Returns:
    An array like `q`. Sums over places, softmax and sums over channels are
    float32.

  Raises:
    ValueError: for shapes or dtypes that do not fit.
  """
  return apply_channel_attention_weights(
    channel_attention_weights(q, k, temperature), v
  )


def channel_attention_weights(
  q: Float[Array, "batch length heads dim"],
  k: Float[Array, "batch length heads kv_dim"],
  temperature: Float[Array, " heads"],
) -> Float[Array, "batch heads dim kv_dim"]:
  """Returns the map of `channel_attention`, float32; rows sum up to 1.

  Raises:
    ValueError: see `channel_attention`.
  """
  _check_queries(q, k, temperature)
  products = jnp.einsum(
    "bnhd,bnhe->bhde", q, k, preferred_element_type=jnp.float32
  )
  # The norms come behind the product, which reads queries and keys as they are
  # and not float32 copies.
  cosines = products * _inverse_norms(q)[..., None]
  cosines = cosines * _inverse_norms(k)[..., None, :]
  scale = temperature.astype(jnp.float32).reshape(1, -1, 1, 1)
  return jax.nn.softmax(cosines * scale, axis=-1)


def apply_channel_attention_weights(
  weights: Float[Array, "batch heads dim kv_dim"],
  v: Float[Array, "batch length heads kv_dim"],
) -> Float[Array, "batch length heads dim"]:
  """Returns the sums of values with these weights, in the dtype of `v`.

  Raises:
    ValueError: for shapes or dtypes that do not fit.
  """
  checks.floating("weights", weights)
  checks.floating("v", v)
  if (
    weights.ndim != 4
    or v.ndim != 4
    or (v.shape[0], *v.shape[2:]) != (*weights.shape[:2], weights.shape[3])
  ):
    raise ValueError(
      f"v has shape {v.shape} and weights {weights.shape}; they must be "
      "[batch, length, heads, kv_dim] and [batch, heads, dim, kv_dim]"
    )
  out = jnp.einsum(
    "bhde,bnhe->bnhd",
    weights.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  return out.astype(v.dtype)


def _inverse_norms(x: Array) -> Array:
  """1 / max(|x_c|, LEAST_NORM) of each channel, [batch, heads, dim]."""
  square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1)
  # A bound of the square and not of its root, whose slope at 0 is infinite.
  return jax.lax.rsqrt(jnp.maximum(square, LEAST_NORM**2))


def _check_queries(q: Array, k: Array, temperature: Array) -> None:
  checks.same_floats(q=q, k=k)
  checks.floating("temperature", temperature)
  if q.ndim != 4 or k.ndim != 4 or q.shape[:3] != k.shape[:3]:
    raise ValueError(
      f"q has shape {q.shape} and k {k.shape}; they must be [batch, length, "
      "heads, dim] with the same batch, length and heads"
    )
  if temperature.shape != q.shape[2:3]:
    raise ValueError(
      f"temperature has shape {temperature.shape}; queries of shape {q.shape} "
      f"need one for each head, {q.shape[2:3]}"
    )
