"""Flow attention of Flowformer: linear attention between conserved flows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from attention import (
  checks,
  features,
  flow_sums,
  linear_normalizers,
  normalizers,
)
from attention.flow_sums import FlowState
from attention.linear import LinearState, linear_attention

COMPETITIONS = ("sources", "heads", "none")


class Flows(NamedTuple):
  """What flows into sinks and out of sources, [batch, length, heads, 1] each.

  Attributes:
    incoming: I, the inverse of what comes into each sink.
    sinks: a, what comes into each sink from sources of equal outflow.
    sources: b, what goes out of each source into sinks of equal inflow.
  """

  incoming: Array
  sinks: Array
  sources: Array


def flow_attention(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len heads dim"],
  v: Float[Array, "batch kv_len heads v_dim"],
  *,
  causal: bool = False,
  feature_map: Callable[[Array], Array] = features.sigmoid,
  clip: float | None = 1.0,
  epsilon: float = 1e-6,
  outer_epsilon: float = 0.0,
  competition: str = "sources",
  allocation: bool = True,
  q_lengths: Int[Array, " batch"] | None = None,
  kv_lengths: Int[Array, " batch"] | None = None,
  kept: Bool[Array, "batch q_len"] | None = None,
  begins: Bool[Array, "batch q_len"] | None = None,
  state: FlowState | None = None,
  return_state: bool = False,
  implementation: str = "auto",
) -> (
  Float[Array, "batch q_len heads v_dim"]
  | tuple[Float[Array, "batch q_len heads v_dim"], FlowState]
):
  """Linear attention with competing sources and allocated sinks.

  With Q = phi(q), K = phi(k), L queries and S keys, I_i = 1 / Q_i . sum_j K_j
  the inverse incoming flow and O_j = 1 / K_j . sum_i Q_i the outgoing one:

      a_i = Q_i . sum_j K_j O_j,    b_j = K_j . sum_i Q_i I_i, clipped
      out_i = sigmoid(a_i L / S) I_i Q_i . sum_j K_j^T v_j S softmax_j(b)

  (Flowformer, arXiv 2202.06258, as its released core has it); `epsilon` is
  added to each element of both vectors of each product. Causal: every sum
  becomes one over positions up to its own, divided by their number, and so does
  the softmax.

  The sum of a over sinks is S and that of b over sources is L, but for
  `epsilon`. So where there are as many, b is 1 on average and a `clip` of 1
  acts on half of the sources; where there are far more queries than keys it
  acts on all, and nothing is left of the competition.

  The released code of each benchmark deviates from the core: images have
  `outer_epsilon` of 1e-6; the Long Range Arena `features.relu_epsilon`, no clip
  and competition among "heads"; WikiText a clip of 5, D4RL of 10, UEA none.

  Args:
    q: queries [batch, q_len, heads, dim].
    k: keys [batch, kv_len, heads, dim].
    v: values [batch, kv_len, heads, v_dim].
    causal: whether position t sees only positions up to t.
    feature_map: phi, positive.
    clip: bound of |b|, or None for none; its gradient beyond it is zero.
    epsilon: see above.
    outer_epsilon: what is added to each product as a whole.
    competition: what the softmax is over: "sources"; "heads" of one source, as
      in the Long Range Arena's code, not causal; or "none" for weights of 1
      (the paper's ablation, reconstructed).
    allocation: whether sinks are multiplied by sigmoid(a L / S).
    q_lengths: number of queries of each sequence that are not padding; the
      others count in no sum, whatever they hold, and get zeros.
    kv_lengths: the same for keys.
    kept: in place of both, where there are as many keys as queries: which
      positions are not padding, wherever it is.
    begins: causal only: positions before which nothing is seen, where another
      sequence of a row begins.
    state: causal only: what positions before these left, from `return_state`.
    return_state: whether to return the state after the last position too.
    implementation: see `kernels.dispatch`; it is that of the last product.

  Returns:
    [batch, q_len, heads, v_dim] in the dtype of `q`, and a FlowState if
    `return_state`.

  Raises:
    ValueError: if shapes, dtypes or options do not fit.
  """
  _check(q, k, v, causal, clip, q_lengths, kv_lengths)
  _check_options(epsilon, outer_epsilon, competition, allocation, causal)
  _check_rows(q, k, causal, kept, begins, state, return_state)
  if kept is not None and (q_lengths is not None or kv_lengths is not None):
    raise ValueError("kept is given beside lengths; one of them says it all")
  sinks, n_sinks = _kept(q, q_lengths, kept)
  sources, n_sources = _kept(k, kv_lengths, kept)
  # Padding may hold anything, NaN too, of which no gradient may be made.
  q = jnp.where(sinks, q, jnp.zeros_like(q))
  k, v = (jnp.where(sources, x, jnp.zeros_like(x)) for x in (k, v))
  if return_state and state is None:
    head = jax.ShapeDtypeStruct(q.shape[-1:], jnp.float32)
    size = jax.eval_shape(feature_map, head).shape[-1]
    state = flow_sums.empty(q.shape[0], q.shape[2], size, v.shape[-1])
  if causal:
    sums = flow_sums.Running(begins, state)
    # [batch or 1, q_len, 1, 1]
    count = sums.total("count", sources.astype(jnp.float32))
    count = jnp.maximum(count, 1.0)
  else:
    sums, count = flow_sums.Whole(), jnp.ones((1, 1, 1, 1))
  flowing = _flows(
    jnp.where(sinks, feature_map(q.astype(jnp.float32)), 0.0),
    jnp.where(sources, feature_map(k.astype(jnp.float32)), 0.0),
    sums,
    count,
    (epsilon, outer_epsilon),
  )
  b = flowing.sources
  if clip is not None:
    b = jnp.clip(b, -clip, clip)
  weights = _competition(b, competition, sums, sources, count, n_sources)
  values = jnp.where(sources, v.astype(jnp.float32) * weights, 0.0)
  out = linear_attention(
    q.astype(jnp.float32),
    k.astype(jnp.float32),
    values,
    feature_map=feature_map,
    normalizer=linear_normalizers.identity(),
    causal=causal,
    lengths=kv_lengths,
    decay=_decay(begins, q.shape[2]),
    state=None if state is None else state.memory,
    return_state=return_state,
    implementation=implementation,
  )
  if return_state:
    out, memory = out
  if allocation:
    share = 1.0 if causal else n_sinks / jnp.maximum(n_sources, 1.0)
    out = out * jax.nn.sigmoid(flowing.sinks * share)
  out = out * (flowing.incoming / count)
  out = jnp.where(sinks, out, 0.0).astype(q.dtype)
  if not return_state:
    return out
  return out, _state(sums, memory, state)


def flows(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len heads dim"],
  *,
  feature_map: Callable[[Array], Array] = features.sigmoid,
  epsilon: float = 1e-6,
) -> Flows:
  """Returns the flows of `flow_attention`, of which all see all.

  Args:
    q: queries [batch, q_len, heads, dim].
    k: keys [batch, kv_len, heads, dim].
    feature_map: phi.
    epsilon: what is added to each element of both vectors of each product.

  Returns:
    Flows in float32, b before it is clipped.

  Raises:
    ValueError: if shapes or dtypes do not fit.
  """
  _check(q, k, k, False, None, None, None)
  phi_q, phi_k = (feature_map(x.astype(jnp.float32)) for x in (q, k))
  one = jnp.ones((1, 1, 1, 1))
  return _flows(phi_q, phi_k, flow_sums.Whole(), one, (epsilon, 0.0))


def _flows(phi_q, phi_k, sums, count, epsilons) -> Flows:
  inner, outer = epsilons

  def flow(name, x, terms):
    total = sums.total(name, terms)
    products = (x + inner) * (total + inner)
    return products.sum(-1, keepdims=True) + outer

  incoming = count / flow("keys", phi_q, phi_k)
  outgoing = count / flow("queries", phi_k, phi_q)
  return Flows(
    incoming,
    flow("outgoing", phi_q, phi_k * outgoing) / count,
    flow("incoming", phi_k, phi_q * incoming) / count,
  )


def _competition(b, kind, sums, sources, count, n_sources) -> Array:
  """Returns the factors of values [batch, kv_len, heads, 1]."""
  causal = isinstance(sums, flow_sums.Running)
  if causal:
    b = jnp.where(sources, b, flow_sums.NO_SOURCE)
    # Of a softmax over positions up to t, the weight of t itself. A state keeps
    # the sum whatever the kind.
    weights = jnp.exp(b - sums.log_total("competition", b)) * count
  if kind == "none":
    return jnp.ones_like(b)
  if causal:
    return weights
  if kind == "heads":
    return jax.nn.softmax(b, axis=2) * n_sources
  # [batch, kv_len, heads, 1] -> [batch, 1, heads, kv_len] and back
  weights, _ = normalizers.softmax().weights(
    b.swapaxes(1, 3), sources.swapaxes(1, 3)
  )
  return weights.swapaxes(1, 3) * n_sources


def _decay(begins: Array | None, heads: int) -> Array | None:
  """Returns what empties the memory where a sequence begins."""
  if begins is None:
    return None
  decay = jnp.where(begins, -jnp.inf, 0.0)[..., None]
  return jnp.broadcast_to(decay, (*begins.shape, heads))


def _state(sums, memory: LinearState, before: FlowState) -> FlowState:
  """Returns the state after the last position; `sums` have its parts."""
  after = {
    name: total.reshape(getattr(before, name).shape)
    for name, total in sums.after.items()
  }
  return FlowState(memory=memory, **after)


def _kept(
  x: Array, lengths: Array | None, kept: Array | None
) -> tuple[Array, Array]:
  """Returns which positions are not padding and how many those are.

  [batch or 1, length, 1, 1] and [batch or 1, 1, 1, 1].
  """
  if kept is None:
    # All of them where there are no lengths.
    lengths = jnp.array([x.shape[1]]) if lengths is None else lengths
    kept = jnp.arange(x.shape[1])[None] < lengths[:, None]
  number = kept.sum(1, keepdims=True).astype(jnp.float32)
  return kept[..., None, None], number[..., None, None]


def _check(q, k, v, causal, clip, q_lengths, kv_lengths) -> None:
  """Checks what `linear_attention` does not see as it is given here."""
  checks.flag("causal", causal)
  checks.same_floats(q=q, k=k, v=v)
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


def _check_options(
  epsilon, outer_epsilon, competition, allocation, causal
) -> None:
  checks.number("epsilon", epsilon, above=0.0)
  checks.number("outer_epsilon", outer_epsilon)
  if outer_epsilon < 0:
    raise ValueError(f"outer_epsilon is {outer_epsilon}; it must be at least 0")
  checks.flag("allocation", allocation)
  checks.choice("competition", competition, COMPETITIONS)
  if causal and competition == "heads":
    raise ValueError(
      "competition is 'heads', which has no causal form; causal=True goes with "
      "'sources' and 'none'"
    )


def _check_rows(q, k, causal, kept, begins, state, return_state) -> None:
  """Checks what says which positions count, and what came before them."""
  checks.flag("return_state", return_state)
  for name, x in (("kept", kept), ("begins", begins)):
    if x is None:
      continue
    if x.dtype != jnp.bool_ or x.shape != q.shape[:2]:
      raise ValueError(
        f"{name} is {x.dtype} of shape {x.shape}; it must be bool of shape "
        f"{q.shape[:2]}, [batch, q_len]"
      )
  if kept is not None and q.shape[1] != k.shape[1]:
    raise ValueError(
      f"kept is for as many keys as queries; q has {q.shape[1]}, k has "
      f"{k.shape[1]}; q_lengths and kv_lengths are for others"
    )
  if not causal and (begins is not None or state is not None or return_state):
    raise ValueError(
      "causal is False; begins, state and return_state go with causal=True"
    )
