"""Flow attention of Flowformer: linear attention between conserved flows."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from attention import features
from attention.linear import linear_attention


def flow_attention(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len heads dim"],
  v: Float[Array, "batch kv_len heads v_dim"],
  *,
  causal: bool = False,
  feature_map=features.sigmoid,
  clip: float | None = 1.0,
  epsilon: float = 1e-6,
  q_lengths: Int[Array, " batch"] | None = None,
  kv_lengths: Int[Array, " batch"] | None = None,
  implementation: str = "auto",
) -> Float[Array, "batch q_len heads v_dim"]:
  """Linear attention with competing sources and allocated sinks.

  With Q = phi(q), K = phi(k), L queries and S keys, I_i = 1 / Q_i . sum_j K_j
  the inverse incoming flow and O_j = 1 / K_j . sum_i Q_i the outgoing one:

      a_i = Q_i . sum_j K_j O_j,    b_j = K_j . sum_i Q_i I_i, clipped
      out_i = sigmoid(a_i L / S) I_i Q_i . sum_j K_j^T v_j S softmax_j(b)

  (Flowformer, arXiv 2202.06258, as its released core has it); `epsilon` is
  added to each element of both vectors of each product. Causal: every sum
  becomes one over positions up to its own, divided by their number, and so does
  the softmax.

  Args:
    q: queries [batch, q_len, heads, dim].
    k: keys [batch, kv_len, heads, dim].
    v: values [batch, kv_len, heads, v_dim].
    causal: whether position t sees only positions up to t.
    feature_map: phi, positive.
    clip: bound of |b|, or None for none; its gradient beyond it is zero.
    epsilon: see above.
    q_lengths: number of queries of each sequence that are not padding; the
      others count in no sum, and their output has no meaning.
    kv_lengths: the same for keys.
    implementation: see `kernels.dispatch`; it is that of the last product.

  Returns:
    [batch, q_len, heads, v_dim] in the dtype of `q`.

  Raises:
    ValueError: if the shapes do not agree.
  """
  if causal and q.shape[1] != k.shape[1]:
    raise ValueError(
      f"causal needs as many keys as queries; q has {q.shape[1]}, k has "
      f"{k.shape[1]}"
    )
  sinks, n_sinks = _kept(q, q_lengths)
  sources, n_sources = _kept(k, kv_lengths)
  phi_q = jnp.where(sinks, feature_map(q.astype(jnp.float32)), 0.0)
  phi_k = jnp.where(sources, feature_map(k.astype(jnp.float32)), 0.0)
  if causal:
    count = jnp.arange(1.0, q.shape[1] + 1)[None, :, None, None]
  else:
    count = jnp.ones((1, 1, 1, 1))

  def flow(x, terms):
    total = jnp.cumsum(terms, 1) if causal else terms.sum(1, keepdims=True)
    return ((x + epsilon) * (total + epsilon)).sum(-1, keepdims=True)

  incoming = count / flow(phi_q, phi_k)
  outgoing = count / flow(phi_k, phi_q)
  a = flow(phi_q, phi_k * outgoing) / count
  b = flow(phi_k, phi_q * incoming) / count
  if clip is not None:
    b = jnp.clip(b, -clip, clip)
  if causal:
    # One constant for all positions: it cancels and nothing overflows.
    weight = jnp.exp(b - jnp.max(b, axis=1, keepdims=True))
    weight = jnp.where(sources, weight, 0.0)
    total = jnp.cumsum(weight, axis=1)
    competition = weight / jnp.maximum(total, 1e-37) * count
    allocation = jax.nn.sigmoid(a)
  else:
    b = jnp.where(sources, b, -jnp.inf)
    competition = jax.nn.softmax(b, axis=1) * n_sources
    allocation = jax.nn.sigmoid(a * (n_sinks / n_sources))
  values = jnp.where(sources, v.astype(jnp.float32), 0.0) * competition
  out = linear_attention(
    q.astype(jnp.float32),
    k.astype(jnp.float32),
    values,
    feature_map=feature_map,
    normalizer="none",
    causal=causal,
    lengths=kv_lengths,
    implementation=implementation,
  )
  return (out * (allocation * incoming / count)).astype(q.dtype)


def _kept(x: Array, lengths: Array | None) -> tuple[Array, Array]:
  """Returns which positions are not padding and how many those are."""
  position = jnp.arange(x.shape[1])[None, :, None, None]
  if lengths is None:
    return position >= 0, jnp.full((1, 1, 1, 1), float(x.shape[1]))
  lengths = lengths[:, None, None, None]
  return position < lengths, lengths.astype(jnp.float32)
