"""Flow attention as a mixer of sequences."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from attention import flow, flow_sums
from models import linear_mixer, mixer_base, open_attention, registry


class FlowAttention(mixer_base.SequenceMixer):
  """Linear attention between conserved flows (Flowformer, arXiv 2202.06258).

  A segment of a row begins with flows of nothing; the bidirectional form has no
  segments. With a cache it is a recurrence, whose state has the size of that of
  linear attention and four vectors more for each head.

  Attributes:
    feature_map: phi, a positive one of `linear_mixer.FEATURE_MAPS`.
    clip: bound of what goes out of a source before the competition, 0 for none;
      the released WikiText code has 5, that for reinforcement learning 10.
    epsilon: what is added to each element of both vectors of each product.
    outer_epsilon: what is added to each product as a whole.
    competition: "sources", "heads" (not causal) or "none"; see
      `attention.flow_attention`.
    allocation: whether sinks are multiplied by the sigmoid of their inflow.
  """

  feature_map: str = "sigmoid"
  clip: float = 1.0
  epsilon: float = 1e-6
  outer_epsilon: float = 0.0
  competition: str = "sources"
  allocation: bool = True

  def init_cache(self, batch: int, length: int) -> mixer_base.Cache:
    """Returns the state before the first token, whatever the length."""
    del length
    head = jax.ShapeDtypeStruct((self.head_dim,), jnp.float32)
    features = jax.eval_shape(self._feature_map(), head).shape[-1]
    state = flow_sums.empty(batch, self.heads, features, self.head_dim)
    return {
      **_flat(state),
      "segment": jnp.zeros((batch,), jnp.int32),
      "index": jnp.zeros((), jnp.int32),
    }

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: mixer_base.Cache | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, mixer_base.Cache | None]:
    """Mixes tokens; see `SequenceMixer`.

    Raises:
      ValueError: if an option is not known, or what it is given cannot be
        expressed by flow attention.
    """
    del train
    self._check(segments, cache)
    q, k, v = self.queries_keys_values(x, positions)
    k, v = (jnp.repeat(y, self.heads // y.shape[2], axis=2) for y in (k, v))
    options = {
      "causal": self.causal,
      "feature_map": self._feature_map(),
      "clip": self.clip or None,
      "epsilon": self.epsilon,
      "outer_epsilon": self.outer_epsilon,
      "competition": self.competition,
      "allocation": self.allocation,
      "kept": None if positions is None else self._kept(x, positions),
      "begins": self._begins(x, segments, cache),
    }
    attend = functools.partial(attention.flow_attention, **options)
    implementation = self.implementation
    if cache is None:
      # Rows of its map do not sum to 1: each has the sigmoid of an inflow.
      out = open_attention.linear(
        self, attend, q, k, v, implementation=implementation
      )
    else:
      out, state = attend(
        q,
        k,
        v,
        state=_nested(cache),
        return_state=True,
        implementation=implementation,
      )
      cache = {
        **_flat(state),
        "segment": cache["segment"] if segments is None else segments[:, -1],
        "index": cache["index"] + x.shape[1],
      }
    out = self.gated(out, x, "output").astype(self.dtype)
    out = self.output(out, x.shape[-1])
    return self.gated(out, x, "projection"), cache

  def _kept(self, x, positions) -> jax.Array:
    return jnp.broadcast_to(positions >= 0, x.shape[:2])

  def _begins(self, x, segments, cache) -> jax.Array | None:
    """Returns where a token is of another segment than the one before it."""
    if segments is None:
      return None
    first = segments[:, :1] if cache is None else cache["segment"][:, None]
    before = jnp.concatenate([first, segments[:, :-1]], axis=1)
    return jnp.broadcast_to(segments != before, x.shape[:2])

  def _feature_map(self):
    maps = linear_mixer.FEATURE_MAPS
    if self.feature_map not in maps:
      raise registry.unknown(
        "feature_map of flow attention", self.feature_map, maps
      )
    return maps[self.feature_map]

  def _check(self, segments, cache) -> None:
    if self.competition not in flow.COMPETITIONS:
      raise registry.unknown(
        "competition of flow attention", self.competition, flow.COMPETITIONS
      )
    if self.position_encoding == "alibi":
      raise ValueError(
        "position_encoding is 'alibi', a bias of scores, and flow attention "
        "has none; it goes with 'rotary', 'learned' and 'none'"
      )
    if not self.causal and (segments is not None or cache is not None):
      raise ValueError(
        "causal is False; segments and a cache go with causal flow attention "
        "only"
      )


def _flat(state: attention.FlowState) -> mixer_base.Cache:
  """Returns the state as a dictionary of arrays."""
  arrays = state._asdict()
  memory = arrays.pop("memory")
  return {**arrays, **{f"memory_{k}": v for k, v in memory._asdict().items()}}


def _nested(cache: mixer_base.Cache) -> attention.FlowState:
  """Returns what `_flat` was given."""
  memory = attention.LinearState(
    *(cache[f"memory_{name}"] for name in attention.LinearState._fields)
  )
  names = (name for name in attention.FlowState._fields if name != "memory")
  return attention.FlowState(memory=memory, **{n: cache[n] for n in names})
