"""Linear attention as a mixer of sequences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import attention
from attention import features, linear_normalizers
from models import layers, mixer_base, registry, taps

FEATURE_MAPS = {
  f.__name__: f
  for f in (
    features.identity,
    features.relu,
    features.relu_epsilon,
    features.elu_plus_one,
    features.sigmoid,
    features.softmax,
    features.taylor,
    features.taylor_compact,
  )
}
NORMALIZERS = ("division", "identity")
DECAYS = ("none", "head", "data")


class LinearAttention(mixer_base.SequenceMixer):
  """Attention with weights phi(q) . phi(k), and a state of fixed size.

  A segment of a row begins with a memory that is emptied; the bidirectional
  form has no segments.

  Attributes:
    feature_map: phi, a key of FEATURE_MAPS.
    normalizer: "division" by the sum of the weights, or "identity". Others of
      `attention.linear_normalizers` count keys, padding and other segments
      among them.
    epsilon: what is added to the sum of the weights.
    key_gate: whether the sigmoid of a projection to heads multiplies phi(k).
    value_gate: likewise the values.
    decay: what is left of the memory from token to token: all ("none"), a
      learned share for each head ("head"), or one for each head that the token
      decides ("data"), the sigmoid of a projection.
  """

  feature_map: str = "elu_plus_one"
  normalizer: str = "division"
  epsilon: float = 1e-6
  key_gate: bool = False
  value_gate: bool = False
  decay: str = "none"

  def init_cache(self, batch: int, length: int) -> mixer_base.Cache:
    """Returns the state before the first token, whatever the length."""
    del length
    memory = (batch, self.heads, self._features(), self.head_dim + 1)
    return {
      "memory": jnp.zeros(memory, jnp.float32),
      "value_sum": jnp.zeros((batch, self.heads, self.head_dim), jnp.float32),
      "count": jnp.zeros((batch,), jnp.float32),
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
        expressed by linear attention.
    """
    del train
    self._check(segments, cache)
    q, k, v = self.queries_keys_values(x, positions)
    kept = None if positions is None else positions >= 0
    options = {
      "feature_map": FEATURE_MAPS[self.feature_map],
      "normalizer": self._made_normalizer(),
      "causal": self.causal,
      "key_gate": self._gate(x, "key_gate", self.key_gate, kept),
      "value_gate": self._gate(x, "value_gate", self.value_gate, None),
      "decay": self._decays(x, segments, kept, cache),
      "implementation": self.implementation,
    }
    if cache is None:
      out = self._attend(q, k, v, options)
    else:
      state = attention.LinearState(
        *(cache[name] for name in attention.LinearState._fields)
      )
      out, state = attention.linear_attention(
        q, k, v, state=state, return_state=True, **options
      )
      cache = {
        **state._asdict(),
        "segment": cache["segment"] if segments is None else segments[:, -1],
        "index": cache["index"] + x.shape[1],
      }
    out = self.gated(out, x, "output").astype(self.dtype)
    out = self.output(out, x.shape[-1])
    return self.gated(out, x, "projection"), cache

  def _attend(self, q, k, v, options) -> jax.Array:
    """Runs the attention; its map is what it makes of one value for each key.

    With a cache there is none: of what is in the memory no keys are known.
    """

    def weigh():
      wide_q, wide_k = (x.astype(jnp.float32) for x in (q, k))
      xla = {**options, "implementation": "xla"}
      return taps.linear_map(
        lambda v: attention.linear_attention(wide_q, wide_k, v, **xla), wide_k
      )

    return taps.with_open_map(
      self,
      lambda: attention.linear_attention(q, k, v, **options),
      weigh,
      lambda weights: attention.apply_attention_weights(weights, v),
    )

  def _gate(self, x, name, wanted, kept) -> jax.Array | None:
    """Returns a gate [batch or 1, length, heads or 1], zero for padding."""
    gate = nn.sigmoid(self._to_heads(x, name)) if wanted else None
    if kept is None:
      return gate
    kept = kept[..., None].astype(jnp.float32)
    return kept if gate is None else gate * kept

  def _decays(self, x, segments, kept, cache) -> jax.Array | None:
    """Returns the logarithm of what is left, [batch, length, heads]."""
    decay = None
    if self.decay == "head":
      logits = self.param("decay", _share_init, (self.heads,), jnp.float32)
      decay = nn.log_sigmoid(logits)
      if kept is None and segments is None:
        return decay
      decay = decay.reshape(1, 1, -1)
    elif self.decay == "data":
      logits = self._to_heads(x, "decay", bias_init=_share_init)
      decay = nn.log_sigmoid(logits)
    shape = (*x.shape[:2], self.heads)
    if decay is not None and kept is not None:
      decay = jnp.where(kept[..., None], decay, 0.0)
    if segments is not None:
      first = segments[:, :1] if cache is None else cache["segment"][:, None]
      before = jnp.concatenate([first, segments[:, :-1]], axis=1)
      begins = (segments != before)[..., None]
      decay = jnp.where(begins, -jnp.inf, 0.0 if decay is None else decay)
    return None if decay is None else jnp.broadcast_to(decay, shape)

  def _to_heads(self, x, name, **options) -> jax.Array:
    """Projects to [batch, length, heads] in float32."""
    dense = layers.Dense(
      self.heads,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=name,
      **options,
    )
    return dense(x).astype(jnp.float32)

  def _made_normalizer(self) -> linear_normalizers.LinearNormalizer:
    if self.normalizer == "identity":
      return linear_normalizers.identity()
    # Not per key: padding and what other segments hold would count.
    return linear_normalizers.division(self.epsilon, per_key=False)

  def _features(self) -> int:
    head = jax.ShapeDtypeStruct((self.head_dim,), jnp.float32)
    return jax.eval_shape(FEATURE_MAPS[self.feature_map], head).shape[-1]

  def _check(self, segments, cache) -> None:
    for field, known in (
      ("feature_map", FEATURE_MAPS),
      ("normalizer", NORMALIZERS),
      ("decay", DECAYS),
    ):
      if getattr(self, field) not in known:
        raise registry.unknown(
          f"{field} of linear attention", getattr(self, field), known
        )
    if self.position_encoding == "alibi":
      raise ValueError(
        "position_encoding is 'alibi', a bias of scores, and linear attention "
        "has none; it goes with 'rotary', 'learned' and 'none'"
      )
    if not self.causal and (
      segments is not None or cache is not None or self.decay != "none"
    ):
      raise ValueError(
        "causal is False; segments, a cache and a decay go with causal linear "
        "attention only"
      )


def _share_init(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
  """Logits of the shares 1 - 2^(-5 - h), those of RetNet (arXiv 2307.08621)."""
  del key
  lost = 2.0 ** -(5.0 + np.arange(shape[-1]) % 8)
  return jnp.broadcast_to(jnp.asarray(np.log(1 / lost - 1), dtype), shape)
