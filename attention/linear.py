"""Linear attention: phi(q_i) . sum_j phi(k_j) v_j^T, one core for many papers.

Whatever the paper, the values get a last column of ones, so that one memory
`sum_j phi(k_j) [v_j, 1]^T` holds the numerator and the denominator; gates and
padding are factors of its terms.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from attention import (
  checks,
  features,
  linear_checks,
  linear_normalizers,
  linear_sequence,
  recurrence,
)
from attention.kernels import dispatch, linear_gpu, linear_gpu_causal
from attention.kernels import linear as linear_tpu
from attention.linear_normalizers import LinearNormalizer


class LinearState(NamedTuple):
  """What the keys seen so far leave behind, in float32.

  Attributes:
    memory: sum of phi(k) [v, 1]^T [batch, heads, features, v_dim + 1], or what
      decay and delta rule made of it.
    value_sum: sum of v [batch, heads, v_dim].
    count: number of keys [batch].
  """

  memory: Array
  value_sum: Array
  count: Array


def linear_attention(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len k_heads dim"],
  v: Float[Array, "batch kv_len v_heads v_dim"],
  *,
  feature_map: Callable[[Array], Array] = features.relu_epsilon,
  normalizer: LinearNormalizer | None = None,
  causal: bool = False,
  key_gate: Float[Array, "#batch kv_len #heads"] | None = None,
  value_gate: Float[Array, "#batch kv_len #heads"] | None = None,
  decay: Float[Array, "..."] | None = None,
  write_strength: Float[Array, "#batch kv_len #heads"] | None = None,
  lengths: Int[Array, " batch"] | None = None,
  state: LinearState | None = None,
  return_state: bool = False,
  chunk_size: int = 64,
  implementation: str = "auto",
) -> (
  Float[Array, "batch q_len heads v_dim"]
  | tuple[Float[Array, "batch q_len heads v_dim"], LinearState]
):
  """Attention whose weights are phi(q_i) . phi(k_j), in linear time.

  The normalizer makes the output of sum_j w_ij v_j and sum_j w_ij, with w_ij =
  phi(q_i) . phi(k_j) g_j, over the keys j that i sees. With `causal` these are
  the keys up to i, and the sums are read from a memory,

      M_i = exp(decay_i) M_(i-1) + phi(k_i) g_i [v_i, 1]^T

  With `write_strength` beta a key replaces what the memory holds for it, the
  delta rule (DeltaNet, arXiv 2406.06484; with a decay arXiv 2412.06464, with
  one for each feature arXiv 2510.26692). With x_i = phi(k_i) g_i,

      M_i = (I - beta_i x_i x_i^T) exp(decay_i) M_(i-1) + beta_i x_i [v_i, 1]^T

  which grows without bound where beta_i |x_i|^2 is more than 2: keys of unit
  norm and beta up to 1 are safe.

  Args:
    q: queries [batch, q_len, heads, dim].
    k: keys [batch, kv_len, k_heads, dim]; k_heads divides heads.
    v: values [batch, kv_len, v_heads, v_dim]; v_heads divides heads.
    feature_map: phi, from [..., dim] to [..., features]; see `features`.
    normalizer: what becomes of the sums (`attention.linear_normalizers`);
      `division()` if None.
    causal: whether a query sees only keys at its position and before.
    key_gate: g [batch or 1, kv_len, heads or 1], a factor of phi(k).
    value_gate: a factor of v, of the same shapes.
    decay: causal only: logarithm, at most 0, of the factor by which the memory
      shrinks before it takes in a key: [heads], [batch, kv_len, heads] or
      [batch, kv_len, heads, features]; -inf empties it.
    write_strength: causal only: beta [batch or 1, kv_len, heads or 1], at least
      0; a key of strength 0 changes nothing. It goes with the normalizer
      `identity()`.
    lengths: number of keys of each sequence that are not padding. Padding adds
      nothing to the memory and does not let it decay, whatever it holds, and
      has no gradient. With `causal` queries are padding too, and get zeros.
    state: what earlier keys left, from `return_state`.
    return_state: whether to return the state after the last key too.
    chunk_size: positions the causal reference takes at a time.
    implementation: see `kernels.dispatch`.

  Returns:
    [batch, q_len, heads, v_dim] in the dtype of `q`, and a LinearState if
    `return_state`. Features, memory and normalisation are float32. A query that
    sees no key gets zeros.

  Raises:
    ValueError: if shapes, dtypes or options do not fit, or the implementation
      cannot take them.
  """
  if normalizer is None:
    normalizer = linear_normalizers.division()
  linear_checks.options(
    feature_map, normalizer, causal, return_state, chunk_size
  )
  linear_checks.heads(q, k, v, causal)
  linear_checks.gates(
    q,
    k,
    key_gate=key_gate,
    value_gate=value_gate,
    write_strength=write_strength,
  )
  linear_checks.memory(q, v, lengths, state, LinearState)
  linear_checks.decay(decay, q, k, causal, normalizer)
  linear_checks.delta_rule(write_strength, causal, normalizer)
  parts, whole = linear_sequence.parts_of(q, k, write_strength is not None)
  target = _target(
    implementation,
    q,
    k,
    v,
    feature_map=feature_map,
    normalizer=normalizer,
    causal=causal,
    decay=decay,
    write_strength=write_strength,
    state=state,
    return_state=return_state,
  )
  if target is not None and not (causal and target.platform == "gpu"):
    return _fused(
      (q, *_repeated(q, k, v), key_gate, value_gate, lengths),
      target,
      parts,
      whole,
      feature_map=feature_map,
      normalizer=normalizer,
      causal=causal,
    )
  kept = _kept(k, lengths)
  if causal:
    q = _without_padding(q, kept)
  k, v, key_gate, value_gate, write_strength = (
    _without_padding(x, kept)
    for x in (k, v, key_gate, value_gate, write_strength)
  )
  k, v = _repeated(q, k, v)
  # One for each key, [batch or 1, kv_len, 1, 1].
  ones = _without_padding(jnp.ones((1, k.shape[1], 1, 1)), kept)
  # The delta rule reads the memory by what it writes with, so that a gate
  # belongs to the key there; elsewhere to the term, which may be narrower.
  gates_terms = write_strength is None
  values, terms = _terms(v, key_gate if gates_terms else None, value_gate, ones)
  memory = None
  if target is not None:
    if key_gate is None and value_gate is None:
      terms = terms.astype(v.dtype)
    sums = _weighted_sums(q, k, terms, feature_map, target, parts, whole)
  else:
    phi_q, phi_k = (feature_map(x.astype(jnp.float32)) for x in (q, k))
    if key_gate is not None and not gates_terms:
      phi_k = phi_k * key_gate[..., None]
    memory = _first_memory(phi_k, terms, state)
    if causal:
      decay = _decays(decay, k.shape[1], kept)
      if parts > 1:
        sums, memory = linear_sequence.run(
          phi_q, phi_k, terms, decay, memory, chunk_size
        )
      else:
        phi_q, phi_k, terms, decay, write_strength = linear_sequence.whole(
          phi_q, phi_k, terms, decay, write_strength, reason=whole
        )
        sums, memory = recurrence.run(
          phi_q, phi_k, terms, decay, memory, chunk_size, write_strength
        )
    else:
      memory = memory + recurrence.dot("bjhf,bjhv->bhfv", phi_k, terms)
      sums = recurrence.dot("bihf,bhfv->bihv", phi_q, memory)
  out = _normalized(sums, values, ones, causal, state, normalizer, q.shape[-1])
  if causal:
    out = _without_padding(out, kept)
  out = out.astype(q.dtype)
  if not return_state:
    return out
  return out, _state(memory, values, ones, state)


def _target(implementation, q, k, v, **options) -> dispatch.Target | None:
  empty = checks.no_scores(q, k)
  return dispatch.choose(
    implementation,
    {
      "tpu": lambda: empty or linear_tpu.unsupported(q, k, v, **options),
      "gpu": lambda: empty or linear_gpu.unsupported_gpu(q, k, v, **options),
    },
  )


def _repeated(q: Array, k: Array, v: Array) -> list[Array]:
  """Returns keys and values of as many heads as there are queries of."""
  return [jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v)]


def _fused(arrays, target, parts, whole, **options) -> Array:
  """Returns the output by a kernel that reads what it is given.

  Args:
    arrays: q, k, v, key_gate, value_gate and lengths, of which the last three
      may be None.
    target: what the kernel is built for.
    parts: how many devices share a sequence.
    whole: if that is 1, why.
    **options: what else `kernels.linear.attend` takes.
  """
  layouts = ("bnhd",) * 3 + ("bnh",) * 2 + ("b",)
  given = [x is not None for x in arrays]

  kernel = linear_tpu if target.platform == "tpu" else linear_gpu

  def call(*present):
    rest = iter(present)
    return kernel.attend(
      *(next(rest) if there else None for there in given),
      parts=parts,
      interpret=target.interpret,
      **options,
    )

  return dispatch.per_device(
    call,
    list(itertools.compress(arrays, given)),
    list(itertools.compress(layouts, given)),
    "bnhd",
    sequence="n" if parts > 1 else "",
    whole=whole,
  )


def _kept(k: Array, lengths: Array | None) -> Array | None:
  """Returns which keys are no padding, [batch, kv_len, 1, 1], None for all."""
  if lengths is None:
    return None
  position = jnp.arange(k.shape[1])[None, :, None, None]
  return position < lengths[:, None, None, None]


def _without_padding(x: Array | None, kept: Array | None) -> Array | None:
  """Returns [batch, length, ...] with zeros for padding.

  Padding may hold anything. Where it is replaced before anything is computed of
  it, NaN reaches no gradient either: zero times NaN would be NaN.
  """
  if x is None or kept is None:
    return x
  return jnp.where(kept[..., 0] if x.ndim == 3 else kept, x, jnp.zeros_like(x))


def _terms(v, key_gate, value_gate, ones) -> tuple[Array, Array]:
  """Returns the values, and what the memory takes in: g [v, 1], in float32."""
  values = v.astype(jnp.float32)
  if value_gate is not None:
    values = values * value_gate[..., None]
  ones = jnp.broadcast_to(ones, (*v.shape[:3], 1))
  terms = jnp.concatenate([values, ones], axis=-1)
  if key_gate is not None:
    terms = terms * key_gate[..., None]
  return values, terms


def _weighted_sums(q, k, terms, feature_map, target, parts, whole) -> Array:
  """Returns sum_(j <= i) phi(q_i) . phi(k_j) terms_j by a kernel for GPUs."""

  def call(q, k, terms):
    sums = linear_gpu_causal.weighted_sums(
      q, k, terms, feature_map=feature_map, interpret=target.interpret
    )
    if parts == 1:
      return sums
    return linear_sequence.with_past(sums, q, k, terms, feature_map)

  return dispatch.per_device(
    call,
    (q, k, terms),
    ("bnhd",) * 3,
    "bnhd",
    sequence="n" if parts > 1 else "",
    whole=whole,
  )


def _first_memory(phi_k, terms, state) -> Array:
  if state is not None:
    return state.memory
  batch, _, heads, size = phi_k.shape
  return jnp.zeros((batch, heads, size, terms.shape[-1]), jnp.float32)


def _decays(decay: Array | None, length: int, kept: Array | None) -> Array:
  """Returns the decay with all axes, each but the length possibly of size one.

  [batch, length, heads, features]; zero, which is none, in padding.
  """
  if decay is None:
    return jnp.zeros((1, length, 1, 1), jnp.float32)
  decay = decay.astype(jnp.float32)
  if decay.ndim == 1:
    decay = jnp.broadcast_to(decay, (1, length, decay.size))
  if decay.ndim == 3:
    decay = decay[..., None]
  return _without_padding(decay, kept)


def _normalized(sums, values, ones, causal, state, normalizer, dim) -> Array:
  """Returns what the normalizer makes of sums [B, N, H, v_dim + 1]."""

  def seen(x):
    return jnp.cumsum(x, 1) if causal else x.sum(1, keepdims=True)

  count = seen(ones)
  if state is not None:
    count = count + state.count[:, None, None, None]
  none, count = count == 0, jnp.maximum(count, 1.0)

  def mean():
    total = seen(values)
    if state is not None:
      total = total + state.value_sum[:, None]
    return total / count

  weight = jnp.where(none, 1.0, sums[..., -1:])
  return normalizer.normalize(sums[..., :-1], weight, count, mean, dim)


def _state(memory, values, ones, state) -> LinearState:
  value_sum = values.sum(1)
  count = jnp.broadcast_to(ones.sum((1, 2, 3)), values.shape[:1])
  if state is not None:
    value_sum, count = value_sum + state.value_sum, count + state.count
  return LinearState(memory, value_sum, count)
