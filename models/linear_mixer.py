"""Linear attention as a mixer of sequences."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import attention
from attention import features, linear_normalizers
from models import (
  layers,
  mixer_base,
  normalization,
  open_attention,
  registry,
  short_convolution,
)

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
DECAYS = ("none", "head", "data", "feature")
UPDATES = ("sum", "delta")
# Maps that make no vector longer, and what may be given to them.
BOUNDED_MAPS = ("identity", "relu")
# What the logarithm of a sigmoid is divided by in a decay of each feature.
FEATURE_TEMPERATURE = 16.0
_PROJECTIONS = ("query", "key", "value")


class LinearAttention(mixer_base.SequenceMixer):
  """Attention with weights phi(q) . phi(k), and a state of fixed size.

  A segment of a row begins with a memory that is emptied; the bidirectional
  form has no segments.

  RetNet (arXiv 2307.08621), GLA (arXiv 2312.06635), DeltaNet (arXiv 2406.06484)
  and gated DeltaNet (arXiv 2412.06464) are values of its fields.

  Attributes:
    feature_map: phi, a key of FEATURE_MAPS.
    feature_dim: channels of queries and keys of a head, which phi maps; 0 for
      head_dim.
    normalizer: "division" by the sum of the weights, or "identity". Others of
      `attention.linear_normalizers` count keys, padding and other segments
      among them.
    epsilon: what is added to the sum of the weights.
    key_gate: whether the sigmoid of a projection to heads multiplies phi(k).
    value_gate: likewise the values.
    decay: what is left of the memory from token to token: all ("none"), a
      learned share for each head ("head"), or one for each head that the token
      decides ("data"), the sigmoid of a projection; or one for each feature
      ("feature"), the 16th root of the sigmoid of a projection through
      `decay_rank` channels, as in GLA.
    decay_rank: channels of that projection.
    update: what a key does to the memory: it adds its value ("sum"), or its
      value replaces a share of what the memory holds for it ("delta"), by the
      sigmoid of a projection for each head. Keys must not be longer than 1
      then: qk_norm="unit" with a map that keeps them so, or softmax.
    short_convolution: tokens that a convolution of queries, keys and values
      sees, before SiLU and their norm; 0 for none.
    output_norm: whether each head of the output has an RMS norm, before the
      gate; without a division by weights its size is that of the memory.
  """

  feature_map: str = "elu_plus_one"
  feature_dim: int = 0
  normalizer: str = "division"
  epsilon: float = 1e-6
  key_gate: bool = False
  value_gate: bool = False
  decay: str = "none"
  decay_rank: int = 16
  update: str = "sum"
  short_convolution: int = 0
  output_norm: bool = False

  def init_cache(self, batch: int, length: int) -> mixer_base.Cache:
    """Returns the state before the first token, whatever the length."""
    del length
    memory = (batch, self.heads, self._features(), self.head_dim + 1)
    cache = {
      "memory": jnp.zeros(memory, jnp.float32),
      "value_sum": jnp.zeros((batch, self.heads, self.head_dim), jnp.float32),
      "count": jnp.zeros((batch,), jnp.float32),
      "segment": jnp.zeros((batch,), jnp.int32),
      "index": jnp.zeros((), jnp.int32),
    }
    if not self.short_convolution:
      return cache
    for name in _PROJECTIONS:
      heads = self.heads_of(name), self.width_of(name)
      recent = short_convolution.init_recent(
        batch, self.short_convolution, heads, self.dtype
      )
      cache[f"{name}_inputs"] = recent["inputs"]
    return {**cache, "recent_segments": recent["segments"]}

  def width_of(self, name: str) -> int:
    """Channels of a head of "query", "key" or "value", as projected."""
    return (
      self.head_dim if name == "value" else (self.feature_dim or self.head_dim)
    )

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
    kept = None if positions is None else positions >= 0
    (q, k, v), recent = self._heads(x, positions, segments, kept, cache)
    options = {
      "feature_map": FEATURE_MAPS[self.feature_map],
      "normalizer": self._made_normalizer(),
      "causal": self.causal,
      "key_gate": self._gate(x, "key_gate", self.key_gate, kept),
      "value_gate": self._gate(x, "value_gate", self.value_gate, None),
      "decay": self._decays(x, segments, kept, cache),
      "write_strength": self._gate(
        x, "write_strength", self.update == "delta", None
      ),
    }
    attend = functools.partial(attention.linear_attention, **options)
    implementation = self.implementation
    if cache is None:
      out = open_attention.linear(
        self, attend, q, k, v, implementation=implementation
      )
    else:
      # It has no map: of what is in the memory no keys are known.
      state = attention.LinearState(
        *(cache[name] for name in attention.LinearState._fields)
      )
      out, state = attend(
        q,
        k,
        v,
        state=state,
        return_state=True,
        implementation=implementation,
      )
      cache = {
        **state._asdict(),
        **recent,
        "segment": cache["segment"] if segments is None else segments[:, -1],
        "index": cache["index"] + x.shape[1],
      }
    if self.output_norm:
      norm = normalization.RMSNorm(
        param_dtype=self.param_dtype, name="output_norm"
      )
      out = norm(out)
    out = self.gated(out, x, "output").astype(self.dtype)
    out = self.output(out, x.shape[-1])
    return self.gated(out, x, "projection"), cache

  def _heads(self, x, positions, segments, kept, cache):
    """Returns queries, keys and values, and what a cache keeps of them."""
    if not self.short_convolution:
      return self.queries_keys_values(x, positions), {}
    heads, new = [], {}
    for name in _PROJECTIONS:
      recent = None
      if cache is not None:
        recent = {
          "inputs": cache[f"{name}_inputs"],
          "segments": cache["recent_segments"],
        }
      convolution = short_convolution.ShortConvolution(
        self.short_convolution,
        "silu",
        self.dtype,
        self.param_dtype,
        name=f"{name}_convolution",
      )
      projected = self.gated(self.project(x, name), x, name)
      y, recent = convolution(projected, segments, kept, recent)
      heads.append(y)
      if cache is not None:
        new[f"{name}_inputs"] = recent["inputs"]
        new["recent_segments"] = recent["segments"]
    q, k, v = heads
    places = mixer_base.counted(x) if positions is None else positions
    q, k = self.placed(q, "query", places), self.placed(k, "key", places)
    return (q, k, v), new

  def _gate(self, x, name, wanted, kept) -> jax.Array | None:
    """Returns a gate [batch or 1, length, heads or 1], zero for padding."""
    gate = nn.sigmoid(self._to_heads(x, name)) if wanted else None
    if kept is None:
      return gate
    kept = kept[..., None].astype(jnp.float32)
    return kept if gate is None else gate * kept

  def _decays(self, x, segments, kept, cache) -> jax.Array | None:
    """Returns the logarithm of what is left.

    None, [heads] or [batch, length, heads, features or nothing].
    """
    decay = self._decay_of(x)
    if segments is None and (kept is None or decay is None):
      return decay
    if decay is None:
      decay = jnp.zeros((1, 1, self.heads), jnp.float32)
    elif decay.ndim == 1:
      decay = decay[None, None]
    decay = jnp.broadcast_to(decay, (*x.shape[:2], *decay.shape[2:]))
    wide = (*x.shape[:2], *(1,) * (decay.ndim - 2))
    if kept is not None:
      decay = jnp.where(kept.reshape(wide), decay, 0.0)
    if segments is not None:
      first = segments[:, :1] if cache is None else cache["segment"][:, None]
      before = jnp.concatenate([first, segments[:, :-1]], axis=1)
      begins = (segments != before).reshape(wide)
      decay = jnp.where(begins, -jnp.inf, decay)
    return decay

  def _decay_of(self, x: jax.Array) -> jax.Array | None:
    """Returns what is left but for segments and padding."""
    if self.decay == "none":
      return None
    if self.decay == "head":
      logits = self.param("decay", _share_init, (self.heads,), jnp.float32)
      return nn.log_sigmoid(logits)
    if self.decay == "data":
      logits = self._to_heads(x, "decay", bias_init=_share_init)
      return nn.log_sigmoid(logits)
    options = {
      "kernel_init": self.kernel_init,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    low = layers.Dense(
      self.decay_rank, use_bias=False, name="decay_low", **options
    )(x)
    logits = layers.DenseGeneral(
      (self.heads, self._features()), name="decay", **options
    )(low)
    return nn.log_sigmoid(logits.astype(jnp.float32)) / FEATURE_TEMPERATURE

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
    head = jax.ShapeDtypeStruct((self.width_of("key"),), jnp.float32)
    return jax.eval_shape(FEATURE_MAPS[self.feature_map], head).shape[-1]

  def _check(self, segments, cache) -> None:
    for field, known in (
      ("feature_map", FEATURE_MAPS),
      ("normalizer", NORMALIZERS),
      ("decay", DECAYS),
      ("update", UPDATES),
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
      segments is not None
      or cache is not None
      or self.decay != "none"
      or self.update != "sum"
      or self.short_convolution
    ):
      raise ValueError(
        "causal is False; segments, a cache, a decay, update='delta' and a "
        "short convolution go with causal linear attention only"
      )
    if self.short_convolution:
      short_convolution.check_size(self.short_convolution)
    if self.update == "delta":
      self._check_delta()

  def _check_delta(self) -> None:
    if self.normalizer != "identity":
      raise ValueError(
        f"normalizer is {self.normalizer!r}; update='delta' needs 'identity', "
        "since corrected weights have no sum to divide by"
      )
    unit = self.qk_norm == "unit" and self.feature_map in BOUNDED_MAPS
    if not unit and self.feature_map != "softmax":
      raise ValueError(
        f"feature_map is {self.feature_map!r} and qk_norm {self.qk_norm!r}; "
        "with update='delta' keys longer than 1 let the memory grow without "
        "bound: take qk_norm='unit' with feature_map='identity' or 'relu', or "
        "feature_map='softmax'"
      )


def _share_init(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
  """Logits of the shares 1 - 2^(-5 - h), those of RetNet (arXiv 2307.08621)."""
  del key
  lost = 2.0 ** -(5.0 + np.arange(shape[-1]) % 8)
  return jnp.broadcast_to(jnp.asarray(np.log(1 / lost - 1), dtype), shape)
