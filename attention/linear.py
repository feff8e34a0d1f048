"""Linear attention: phi(q_i) . sum_j phi(k_j) v_j^T, one core for many papers.

Whatever the paper, the values get a last column of ones, so that one memory
`sum_j phi(k_j) [v_j, 1]^T` holds the numerator and the denominator; gates and
padding are factors of its terms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from attention import features
from attention.kernels import dispatch, linear_gpu
from attention.kernels import linear as linear_tpu

NORMALIZERS = ("division", "subtraction", "none")


class LinearState(NamedTuple):
  """What the keys seen so far leave behind, in float32.

  Attributes:
    memory: sum of phi(k) [v, 1]^T [batch, heads, features, v_dim + 1].
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
  feature_map=features.relu_epsilon,
  normalizer: str = "division",
  epsilon: float = 1e-6,
  epsilon_per_key: bool = True,
  scale: float | None = None,
  causal: bool = False,
  key_gate: Float[Array, "#batch kv_len #heads"] | None = None,
  value_gate: Float[Array, "#batch kv_len #heads"] | None = None,
  decay: Array | None = None,
  lengths: Int[Array, " batch"] | None = None,
  state: LinearState | None = None,
  return_state: bool = False,
  chunk_size: int = 64,
  implementation: str = "auto",
):
  """Attention whose weights are phi(q_i) . phi(k_j), in linear time.

  With w_ij = phi(q_i) . phi(k_j) g_j over the keys j that i sees, N of them:

  - "division": sum_j w_ij v_j / (sum_j w_ij + N * epsilon), or + epsilon if not
    `epsilon_per_key`. LINA: `relu_epsilon`, 1e-6 (arXiv 2601.22630); LinFusion:
    `elu_plus_one`, 1e-4 (arXiv 2409.02097); Based: `taylor`, causal, 1e-12 not
    per key (arXiv 2402.18668).
  - "subtraction": s/N sum_j w_ij v_j + (1 - s/N sum_j w_ij) mean_j v_j, with
    s = `scale`. InLine: `relu`.
  - "none": sum_j w_ij v_j, the core of `flow_attention`.

  Args:
    q: queries [batch, q_len, heads, dim].
    k: keys [batch, kv_len, k_heads, dim]; k_heads divides heads.
    v: values [batch, kv_len, v_heads, v_dim]; v_heads divides heads.
    feature_map: phi, from [..., dim] to [..., features]; see `features`.
    normalizer: one of NORMALIZERS.
    epsilon: added to the denominator of "division".
    epsilon_per_key: whether it is relative to the mean over keys.
    scale: s of "subtraction"; dim ** -0.5 if None.
    causal: whether a query sees only keys at its position and before.
    key_gate: g [batch or 1, kv_len, heads or 1], a factor of phi(k).
    value_gate: a factor of v, of the same shapes.
    decay: causal only: logarithm, at most 0, of the factor by which the memory
      shrinks before it takes in a key: [heads], [batch, kv_len, heads] or
      [batch, kv_len, heads, features].
    lengths: number of keys of each sequence that are not padding.
    state: what earlier keys left, from `return_state`.
    return_state: whether to return the state after the last key too.
    chunk_size: positions the causal reference takes at a time.
    implementation: see `kernels.dispatch`.

  Returns:
    [batch, q_len, heads, v_dim] in the dtype of `q`, and a LinearState if
    `return_state`. Features, memory and normalisation are float32.

  Raises:
    ValueError: if shapes or options do not fit, or the implementation cannot
      take them.
  """
  _check(q, k, v, normalizer, causal, decay, chunk_size)
  options = {
    "feature_map": feature_map,
    "decay": decay,
    "state": state,
    "return_state": return_state,
  }
  target = dispatch.choose(
    implementation,
    {
      "tpu": lambda: linear_tpu.unsupported(q, k, v, **options),
      "gpu": lambda: linear_gpu.unsupported_gpu(q, k, v, **options),
    },
    # By the estimates in benchmarks/results/kernels_static.md.
    slower=("tpu",),
  )
  heads, v_dim = q.shape[2], v.shape[-1]
  gated = not (key_gate is None and value_gate is None)
  k = jnp.repeat(k, heads // k.shape[2], axis=2)
  v = jnp.repeat(v, heads // v.shape[2], axis=2)
  kept, count = _counts(q, k, lengths, causal, state)
  values = v.astype(jnp.float32)
  if value_gate is not None:
    values = values * value_gate[..., None]
  # Padding may hold anything, NaN too.
  values = jnp.where(kept, values, 0.0)
  terms = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
  if key_gate is not None:
    terms = terms * key_gate[..., None]
  terms = jnp.where(kept, terms, 0.0)
  k = jnp.where(kept, k, jnp.zeros_like(k))
  memory = None
  if target is None:
    sums, memory = _reference(
      q, k, terms, feature_map, causal, decay, state, chunk_size
    )
  else:
    if not gated:
      terms = terms.astype(v.dtype)

    kernel = linear_tpu if target.platform == "tpu" else linear_gpu

    def call(q, k, terms):
      return kernel.weighted_sums(
        q,
        k,
        terms,
        feature_map=feature_map,
        causal=causal,
        interpret=target.interpret,
      )

    sums = dispatch.per_device(call, (q, k, terms), ("bnhd",) * 3, "bnhd")
  value_sum = jnp.zeros((*values.shape[:1], *values.shape[2:]), jnp.float32)
  if state is not None:
    value_sum = state.value_sum
  if normalizer == "division":
    extra = epsilon * count if epsilon_per_key else epsilon
    out = sums[..., :v_dim] / (sums[..., v_dim:] + extra)
  elif normalizer == "subtraction":
    s = q.shape[-1] ** -0.5 if scale is None else scale
    mean = value_sum[:, None] + (
      jnp.cumsum(values, 1) if causal else values.sum(1, keepdims=True)
    )
    sums, mean = sums * (s / count), mean / count
    out = sums[..., :v_dim] + (1.0 - sums[..., v_dim:]) * mean
  else:
    out = sums[..., :v_dim]
  out = out.astype(q.dtype)
  if not return_state:
    return out
  return out, LinearState(
    memory, value_sum + values.sum(1), _last_count(kept, k, state)
  )


def _counts(q, k, lengths, causal, state):
  """Returns which keys are real and how many each query sees, broadcastable."""
  kv_len = k.shape[1]
  kept = jnp.ones((1, kv_len, 1, 1), bool)
  if lengths is not None:
    position = jnp.arange(kv_len)[None, :, None, None]
    kept = position < lengths[:, None, None, None]
  count = kept.astype(jnp.float32)
  count = jnp.cumsum(count, 1) if causal else count.sum(1, keepdims=True)
  if state is not None:
    count = count + state.count[:, None, None, None]
  return kept, jnp.maximum(count, 1.0)


def _last_count(kept, k, state):
  count = kept.astype(jnp.float32).sum((1, 2, 3)) + jnp.zeros(k.shape[:1])
  return count if state is None else count + state.count


def _reference(q, k, terms, feature_map, causal, decay, state, chunk_size):
  """Returns sum_j phi(q_i) . phi(k_j) terms_j and the memory at the end."""
  phi_q = feature_map(q.astype(jnp.float32))
  phi_k = feature_map(k.astype(jnp.float32))
  batch, _, heads, size = phi_k.shape
  memory = jnp.zeros((batch, heads, size, terms.shape[-1]), jnp.float32)
  if state is not None:
    memory = state.memory
  if not causal:
    memory = memory + _dot("bjhf,bjhv->bhfv", phi_k, terms)
    return _dot("bihf,bhfv->bihv", phi_q, memory), memory
  if decay is None:
    decay = jnp.zeros(heads)
  decay = decay.astype(jnp.float32)
  if decay.ndim == 1:
    decay = jnp.broadcast_to(decay, phi_k.shape[:3])
  if decay.ndim == 3:
    decay = decay[..., None]
  length = k.shape[1]
  chunk = min(chunk_size, length)
  chunks = -(-length // chunk)

  def cut(x):
    # [B, N, ...] -> [chunks, B, C, ...]; the memory keeps still in the padding.
    pad = [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, pad).reshape(batch, chunks, chunk, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  seen = jnp.tril(jnp.ones((chunk, chunk), bool))[None, :, :, None, None]

  def step(memory, xs):
    phi_q, phi_k, terms, decay = xs
    total = jnp.cumsum(decay, axis=1)
    # Differences before the exponential: each is at most 0 where seen, while
    # exp(-total) alone would overflow.
    between = total[:, :, None] - total[:, None, :]
    between = jnp.exp(jnp.where(seen, between, -jnp.inf))
    if between.shape[-1] == 1:
      weights = _dot("bihf,bjhf->bijh", phi_q, phi_k) * between[..., 0]
    else:
      weights = _dot("bihf,bjhf,bijhf->bijh", phi_q, phi_k, between)
    out = _dot("bijh,bjhv->bihv", weights, terms)
    out = out + _dot("bihf,bhfv->bihv", phi_q * jnp.exp(total), memory)
    left = jnp.exp(total[:, -1:] - total)
    memory = memory * jnp.exp(total[:, -1])[..., None]
    return memory + _dot("bjhf,bjhv->bhfv", phi_k * left, terms), out

  memory, out = jax.lax.scan(
    step, memory, tuple(map(cut, (phi_q, phi_k, terms, decay)))
  )
  out = jnp.moveaxis(out, 0, 1).reshape(batch, chunks * chunk, *out.shape[3:])
  return out[:, :length], memory


def _dot(formula: str, *arrays: Array) -> Array:
  return jnp.einsum(formula, *arrays, precision=jax.lax.Precision.HIGHEST)


def _check(q, k, v, normalizer, causal, decay, chunk_size) -> None:
  if normalizer not in NORMALIZERS:
    raise ValueError(
      f"normalizer is {normalizer!r}; it must be one of "
      f"{', '.join(map(repr, NORMALIZERS))}"
    )
  for name, x in (("k", k), ("v", v)):
    if x.shape[:2] != (q.shape[0], k.shape[1]) or q.shape[2] % x.shape[2]:
      raise ValueError(
        f"{name} has shape {x.shape}; q of shape {q.shape} needs batch "
        f"{q.shape[0]}, length {k.shape[1]} and a divisor of {q.shape[2]} heads"
      )
  if k.shape[-1] != q.shape[-1]:
    raise ValueError(f"k has dimension {k.shape[-1]}; q has {q.shape[-1]}")
  if causal and q.shape[1] != k.shape[1]:
    raise ValueError(
      f"causal needs as many keys as queries; q has {q.shape[1]}, k has "
      f"{k.shape[1]}"
    )
  if chunk_size < 1:
    raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
  if decay is None:
    return
  if not causal:
    raise ValueError("decay needs causal=True: it is a decay over time")
  if normalizer == "subtraction":
    raise ValueError("decay goes with 'division' or 'none', not 'subtraction'")
  length, heads = k.shape[1], q.shape[2]
  if decay.shape != (heads,) and decay.shape[:3] != (k.shape[0], length, heads):
    raise ValueError(
      f"decay has shape {decay.shape}; it must be {(heads,)} or begin with "
      f"{(k.shape[0], length, heads)}"
    )
