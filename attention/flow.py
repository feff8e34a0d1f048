"""Flow attention of Flowformer: linear attention between conserved flows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from attention import checks, features, linear_normalizers, normalizers
from attention.linear import linear_attention


def flow_attention(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len heads dim"],
  v: Float[Array, "batch kv_len heads v_dim"],
  *,
  causal: bool = False,
  feature_map: Callable[[Array], Array] = features.sigmoid,
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
      others count in no sum, whatever they hold, and get zeros.
    kv_lengths: the same for keys.
    implementation: see `kernels.dispatch`; it is that of the last product.

  Returns:
    [batch, q_len, heads, v_dim] in the dtype of `q`.

  Raises:
    ValueError: if shapes, dtypes or options do not fit.
  """
  _check(q, k, v, causal, clip, epsilon, q_lengths, kv_lengths)
  sinks, n_sinks = _kept(q, q_lengths)
  sources, n_sources = _kept(k, kv_lengths)
  # Padding may hold anything, NaN too, of which no gradient may be made.
  q = jnp.where(sinks, q, jnp.zeros_like(q))
  k, v = (jnp.where(sources, x, jnp.zeros_like(x)) for x in (k, v))
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
    # The logarithm of each sum by itself: one constant for all positions would
    # be that of the future, which a large b there makes of the past a zero.
    # Padding is at the end, so that no sum that counts has it.
    competition = jnp.exp(b - jax.lax.cumlogsumexp(b, axis=1)) * count
    allocation = jax.nn.sigmoid(a)
  else:
    # [batch, kv_len, heads, 1] -> [batch, 1, heads, kv_len] and back
    competition, _ = normalizers.softmax().weights(
      b.swapaxes(1, 3), sources.swapaxes(1, 3)
    )
    competition = competition.swapaxes(1, 3) * n_sources
    allocation = jax.nn.sigmoid(a * (n_sinks / jnp.maximum(n_sources, 1.0)))
  values = jnp.where(sources, v.astype(jnp.float32) * competition, 0.0)
  out = linear_attention(
    q.astype(jnp.float32),
    k.astype(jnp.float32),
    values,
    feature_map=feature_map,
    normalizer=linear_normalizers.identity(),
    causal=causal,
    lengths=kv_lengths,
    implementation=implementation,
  )
  out = out * (allocation * incoming / count)
  return jnp.where(sinks, out, 0.0).astype(q.dtype)


def _kept(x: Array, lengths: Array | None) -> tuple[Array, Array]:
  """Returns which positions are not padding and how many those are."""
  position = jnp.arange(x.shape[1])[None, :, None, None]
  if lengths is None:
    return position >= 0, jnp.full((1, 1, 1, 1), float(x.shape[1]))
  lengths = lengths[:, None, None, None]
  return position < lengths, lengths.astype(jnp.float32)


def _check(q, k, v, causal, clip, epsilon, q_lengths, kv_lengths) -> None:
  """Checks what `linear_attention` does not see as it is given here."""
  checks.flag("causal", causal)
  checks.same_floats(q=q, k=k, v=v)
  checks.number("epsilon", epsilon, above=0.0)
  if clip is not None:
    checks.number("clip", clip, above=0.0)
  for name, x in (("k", k), ("v", v)):
    if x.shape[:1] + x.shape[2:3] != q.shape[:1] + q.shape[2:3]:
      raise ValueError(
        f"{name} has shape {x.shape}; q of shape {q.shape} needs batch "
        f"{q.shape[0]} and {q.shape[2]} heads"
      )
  checks.lengths("q_lengths", q_lengths, q.shape[0])
  checks.lengths("kv_lengths", kv_lengths, k.shape[0])
  if causal and q.shape[1] != k.shape[1]:
    raise ValueError(
      f"causal needs as many keys as queries; q has {q.shape[1]}, k has "
      f"{k.shape[1]}"
    )
