"""The transformer of sequences: language models and encoders from one class.

"Attention Is All You Need" (arXiv 1706.03762) with what GPT-2, BERT, Llama,
Qwen3, Gemma and ModernBERT made of it as fields. The tests hold logits and
gradients equal to those of the `transformers` library.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from models import layers, rows, taps, transformer_checks
from models.layer_stacking import (
  empty_caches,
  stack_layers,
  unstack_layers,
  written,
)
from models.residual_streams import DepthQueries
from models.transformer_layers import Embedding, clipped, scanned
from models.transformer_parts import TransformerParts
from models.transformer_variants import SIZES

__all__ = ["KIND", "VARIANTS", "Transformer", "stack_layers", "unstack_layers"]

KIND = "language"
_LAYER_RULES = (
  ("mixer/(query|key|value|gate)/kernel", (None, "model", None)),
  ("mixer/(query|key|value|gate)/bias", ("model", None)),
  ("mixer/out/kernel", ("model", None, None)),
  ("mlp/(expand|gate)/kernel", (None, "model")),
  ("mlp/(expand|gate)/bias", ("model",)),
  ("mlp/shrink/kernel", ("model", None)),
)
# Heads, hidden channels of feed-forward layers, and the vocabulary. A scan's
# layers are stacked, and each step of it takes one: that axis is not to split.
SHARDING_RULES = (
  *((f"layers/.*/{path}", ("whole", *axes)) for path, axes in _LAYER_RULES),
  *_LAYER_RULES,
  ("embed/embedding", ("model", None)),
  ("head/logits/kernel", (None, "model")),
  ("head/logits/bias", ("model",)),
)
Cache = dict[str, Any]


class Transformer(TransformerParts):
  """From tokens to logits, decoder-only or, with causal=False, an encoder.

  Attributes:
    vocabulary_size: number of tokens there are, and of logits.
    classes: number of logits where they are not of tokens, which needs
      tied_head=False; 0 for vocabulary_size.
    width: channels of the residual stream.
    depth: number of layers.
    heads: query heads of a layer.
    kv_heads: heads of keys and values, a divisor of `heads`; 0 for `heads`.
    head_dim: channels of a head; 0 for width // heads.
    mixers: names of `sequence_mixers.SEQUENCE_MIXERS`, the pattern that the
      layers repeat; its length divides `depth`. A label after a name, as in
      "full/sparse", tells layers of one mixer apart.
    mixer_options: for names of `mixers`, fields of theirs that all layers of
      that name get, as {"linear": {"feature_map": "taylor"}}.
    window: keys that a "sliding" layer sees on a side, its own included.
    causal: whether a token sees only itself and what is before it.
    norm: a key of `token_norms.NORMS`, of the layers' branches. The final
      norm and those of heads, embeddings and the head are like it, but without
      a gate or a factor before the statistics (`token_norms.PLAIN`).
    norm_epsilon: added to the mean square or the variance.
    norm_bias: whether layer norms have a bias.
    norm_offset: whether the factor of an RMS norm is one plus what is stored.
    norm_gate_rank: rank of the gates of norms that have one.
    norm_alpha: what alpha of dynamic tanh begins with.
    norm_placement: see `transformer_layers.Layer`; "post" has no final norm.
    residual: "sum", or "attention" where every branch and the output read the
      softmax over depth of the embeddings and of what branches before gave, and
      nothing is added to what they read ("Attention Residuals", arXiv
      2603.15031); not with norm_placement="post". Taps named "hidden_state" are
      then sums over the blocks of branches so far.
    residual_block: branches, of which a layer has two, or one if mlp="none",
      that are summed before they are attended to; 1 for none.
    residual_clip: the residual stream is cut off at this size, below and above;
      0 for nowhere.
    first_mixer_norm: whether the first layer normalises what its mixer reads;
      ModernBERT does not, after an embedding norm.
    embedding_norm: whether embeddings are normalised.
    qk_norm: whether heads of queries and keys are; "unit" gives them unit
      length instead.
    position_encoding: "rotary", "learned", "alibi" or "none".
    rotary: base, scaling, ... of rotary positions; see `positions.rotate`.
    max_length: number of learned positions.
    token_types: number of token types, 0 for none.
    mlp: a key of `feed_forward.FEED_FORWARDS`, or "none".
    mlp_width: hidden channels of the feed-forward layer; 0 for 4 * width.
    mlp_bias: whether its dense layers have biases, and that of a transform of
      the head.
    attention_bias: whether queries, keys, values and gates have biases.
    out_bias: whether the output of a mixer has one.
    output_gate: see `mixer_base.SequenceMixer`, and so for
      `gate_position`, `gate_activation` and `gate_operation`.
    attention_scale: factor of the scores; 0 for head_dim ** -0.5.
    attention_soft_cap: of the scores; 0 for none.
    tied_head: whether the embeddings are the kernel of the logits.
    head_bias: whether logits have a bias.
    head_transform: whether a dense layer, the activation of `mlp` and a norm
      come before the logits, as BERT has it.
    logit_soft_cap: logits become cap * tanh(logits / cap); 0 for none.
    embedding_scale: factor of the embeddings of tokens.
    dropout_rate: of embeddings and of what each branch gives.
    init_scale: standard deviation of the weights; of those that write to the
      residual stream it is divided by sqrt(2 depth), as in GPT-2.
    scan_layers: whether layers are run by a scan over repeats of the pattern,
      with stacked parameters (see `stack_layers`): it compiles faster.
    remat: whether the backward pass computes each layer again instead of
      keeping its activations.
    implementation: of the attention, see `attention.kernels.dispatch`.
    dtype: dtype of the computation; statistics, softmax and logits are float32.
    param_dtype: dtype of the parameters.
  """

  vocabulary_size: int = 256
  classes: int = 0
  width: int = 256
  depth: int = 4
  heads: int = 4
  kv_heads: int = 0
  head_dim: int = 0
  mixers: tuple[str, ...] = ("full",)
  mixer_options: Mapping[str, Any] = FrozenDict()
  window: int = 0
  causal: bool = True
  norm: str = "rms_norm"
  norm_epsilon: float = 1e-6
  norm_bias: bool = True
  norm_offset: bool = False
  norm_gate_rank: int = 16
  norm_alpha: float = 0.5
  norm_placement: str = "pre"
  residual: str = "sum"
  residual_block: int = 1
  residual_clip: float = 0.0
  first_mixer_norm: bool = True
  embedding_norm: bool = False
  qk_norm: bool | str = False
  position_encoding: str = "rotary"
  rotary: Mapping[str, Any] = FrozenDict()
  max_length: int = 1024
  token_types: int = 0
  mlp: str = "swiglu"
  mlp_width: int = 0
  mlp_bias: bool = False
  attention_bias: bool = False
  out_bias: bool = False
  output_gate: str = "none"
  gate_position: str = "output"
  gate_activation: str = "sigmoid"
  gate_operation: str = "multiply"
  attention_scale: float = 0.0
  attention_soft_cap: float = 0.0
  tied_head: bool = True
  head_bias: bool = False
  head_transform: bool = False
  logit_soft_cap: float = 0.0
  embedding_scale: float = 1.0
  dropout_rate: float = 0.0
  init_scale: float = 0.02
  scan_layers: bool = False
  remat: bool = False
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  def setup(self):
    transformer_checks.check_fields(self)
    table = functools.partial(
      Embedding, width=self.width, init=self._kernel_init, **self._dtypes
    )
    self.embed = table(self.vocabulary_size)
    if self.position_encoding == "learned":
      self.position_embed = table(self.max_length)
    if self.token_types:
      self.token_type_embed = table(self.token_types)
    if self.embedding_norm:
      self.embed_norm = self._norm()
    self.embed_dropout = nn.Dropout(self.dropout_rate)
    if self.scan_layers:
      pattern = tuple(self._layer(i) for i in range(len(self.mixers)))
      self.layers = scanned(self.depth // len(self.mixers))(pattern)
    else:
      self.layer = [self._layer(i)() for i in range(self.depth)]
    if self.residual == "attention":
      self.depth_attention = DepthQueries(
        self.depth * (1 if self.mlp == "none" else 2),
        self.width,
        self.residual_block,
        self.scan_layers,
        self.param_dtype,
      )
    if self.norm_placement != "post":
      self.final_norm = self._norm()
    self.head = self._make_head()

  def __call__(
    self,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    token_types: jax.Array | None = None,
    cache: Cache | None = None,
    train: bool = False,
  ) -> jax.Array | tuple[jax.Array, Cache]:
    """Maps tokens to logits.

    Args:
      tokens: integers [batch, length], or floats [batch, length,
        vocabulary_size], of which each is a mixture of embeddings.
      positions: integers [batch, length], going up by one in each segment; -1
        is padding, which is not between tokens of a row, is seen by nobody and
        has finite logits that mean nothing. 0, 1, 2, ... from the end of the
        cache if None.
      segments: integers [batch, length]; tokens see those of their own, and
        those of a segment are neighbours. None for one segment.
      token_types: integers [batch, length]; zeros if None.
      cache: what `init_cache` or an earlier call gave, causal only. A call may
        bring any number of tokens, one to decode.
      train: whether dropout drops; it takes its bits from "dropout".

    Returns:
      float32 [batch, length, classes], and the new cache if one was given.

    Raises:
      ValueError: if the fields contradict each other, an argument has another
        shape or dtype, or the tokens do not fit into the cache.
    """
    x, cache = self._run(tokens, positions, segments, token_types, cache, train)
    logits = self._logits(x)
    return logits if cache is None else (logits, cache)

  def hidden_states(
    self,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    token_types: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Maps tokens to what the head reads, [batch, length, width].

    Arguments and errors are those of a call.
    """
    return self._run(tokens, positions, segments, token_types, None, train)[0]

  def init_cache(self, batch: int, length: int) -> Cache:
    """Returns the cache of `batch` rows before their first token.

    Args:
      batch: number of rows.
      length: how many tokens a row has at most, padding and those to come
        included.

    Raises:
      ValueError: if the fields contradict each other.
    """
    transformer_checks.check_fields(self)

    def of(i):
      return self._mixer(i)(parent=None).init_cache(batch, length)

    pattern = len(self.mixers)
    return empty_caches(of, self.depth, pattern, stacked=self.scan_layers)

  def _logits(self, x: jax.Array) -> jax.Array:
    table = self.embed.embedding if self.tied_head else None
    return taps.tap(self, "logits", self.head(x, table))

  def _run(self, tokens, positions, segments, token_types, cache, train):
    transformer_checks.check_arrays(
      self.vocabulary_size,
      tokens=tokens,
      positions=positions,
      segments=segments,
      token_types=token_types,
    )
    if cache is not None and positions is None:
      positions = written(cache) + jnp.arange(tokens.shape[1])[None, :]
      positions = jnp.broadcast_to(positions, tokens.shape[:2])
    x = self._embedded(tokens, positions, token_types, train)
    return self._through(x, positions, segments, cache, train)

  def _through(
    self, x, positions, segments, cache, train, between=lambda i, x: x
  ):
    """Takes embedded tokens through the layers.

    `between` maps the number of a layer and what it gave to what the next one
    gets; layers of a scan have none.
    """
    x = clipped(x, self.residual_clip)
    x = taps.tap(self, "embedded_state", x)
    if self.residual == "attention":
      x = self.depth_attention.begin(x)
    if self.scan_layers:
      own = None if cache is None else cache["layers"]
      x, new = self.layers(x, positions, segments, own, train)
      new = {"layers": new}
    else:
      new = {}
      for i, layer in enumerate(self.layer):
        own = None if cache is None else cache[f"layer_{i}"]
        x, new[f"layer_{i}"] = layer(x, positions, segments, own, train)
        x = between(i, x)
    if self.residual == "attention":
      x = self.depth_attention.end(x)
    if self.norm_placement != "post":
      x = self.final_norm(x)
    x = taps.tap(self, "final_state", x)
    return x, None if cache is None else new

  def _embedded(self, tokens, positions, token_types, train) -> jax.Array:
    x = rows.by_rows(self.embed(tokens), tokens=True)
    if self.embedding_scale != 1.0:
      x = x * jnp.asarray(self.embedding_scale, x.dtype)
    if self.position_encoding == "learned":
      length = tokens.shape[1]
      if length > self.max_length:
        raise ValueError(
          f"tokens has length {length}; there are max_length={self.max_length} "
          "learned positions"
        )
      if positions is None:
        positions = jnp.arange(length)[None, :]
      x = x + self.position_embed(jnp.maximum(positions, 0))
    if self.token_types:
      if token_types is None:
        token_types = jnp.zeros(tokens.shape[:2], jnp.int32)
      x = x + self.token_type_embed(token_types)
    elif token_types is not None:
      raise ValueError("token_types is given, but the model has token_types=0")
    if self.embedding_norm:
      x = self.embed_norm(x)
    return self.embed_dropout(x, deterministic=not train)


VARIANTS = {name: (Transformer, fields) for name, fields in SIZES.items()}
