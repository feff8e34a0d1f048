"""Hierarchical self-attention as a mixer of sequences."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from attention import trees
from models import mixer_base, registry, taps

SEGMENTS = ("apart", "level")
NOT_CAUSAL = (
  "causal is True or there is a cache, and of hierarchical attention no causal "
  "form is defined; it needs causal=False, an encoder, and does not decode"
)


class HierarchicalAttention(mixer_base.SequenceMixer):
  """Every token sees near ones one by one, and far ones as means of windows.

  "Hierarchical Self-Attention" (arXiv 2509.15448), for encoders only. It has
  the parameters of "full", so that layers of a trained encoder can be replaced
  by it.

  Attributes:
    branchings: tokens of a window, windows of a window of them, and so on; all
      that is left are the children of the root. Windows begin at positions that
      are multiples of their width.
    self_term: whether a token sees itself, or leaves that to the residual.
    segments_are: "apart", so that each segment is a tree and tokens see their
      own, or "level": sentences of one row, the root's children, of which each
      is a tree of windows. Without segments a row is one sentence.
    max_segments: for "level", the most segments of a row, 0 if it is not known:
      then the time of the sentences' attention is that of as many sentences as
      tokens. A row with more gives NaN.
    attention_scale: factor of the scores; 0 for head_dim ** -0.5.
  """

  branchings: Sequence[int] = (16,)
  self_term: bool = True
  segments_are: str = "apart"
  max_segments: int = 0
  attention_scale: float = 0.0

  def init_cache(self, batch: int, length: int) -> mixer_base.Cache:
    """There is none.

    Raises:
      ValueError: always.
    """
    raise ValueError(NOT_CAUSAL)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: mixer_base.Cache | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, None]:
    """Mixes tokens; see `SequenceMixer`.

    Raises:
      ValueError: if it is causal or there is a cache, if scores have a bias, or
        an option does not fit.
    """
    del train
    self._check(cache)
    q, k, v = self.queries_keys_values(x, positions)
    options = {
      "tree": self._tree(x, positions, segments),
      "scale": self.attention_scale or self.head_dim**-0.5,
      "self_term": self.self_term,
    }
    out = taps.with_open_map(
      self,
      lambda: attention.hierarchical_attention(
        q, k, v, implementation=self.implementation, **options
      ),
      lambda: attention.hierarchical_weights(q, k, **options),
      lambda weights: attention.apply_attention_weights(weights, v),
    )
    gate = self.gate(out.shape[2:], x, "output")
    if gate is not None:
      out = gate.apply(out.astype(jnp.float32), None).astype(v.dtype)
    out = self.output(out, x.shape[-1])
    return self.gated(out, x, "projection"), None

  def _tree(self, x, positions, segments) -> trees.Tree:
    if positions is None and segments is None:
      return trees.regular(self.branchings)
    places = mixer_base.counted(x) if positions is None else positions
    places = jnp.broadcast_to(places, x.shape[:2])
    if positions is None:
      places = mixer_base.places_in_segments(places, segments)
    # [batch, length] each, -1 in padding: the number of a token's window.
    sizes = [1]
    for branching in self.branchings:
      sizes.append(sizes[-1] * branching)
    ids = [places // size for size in sizes[1:]]
    # A row need not begin with a window.
    widest = [*self.branchings, -(-x.shape[1] // sizes[-1]) + 1]
    if self.segments_are == "level" and segments is not None:
      ids.append(segments)
      widest.append(self.max_segments)
      segments = None
    if not ids:
      ids, widest = [jnp.minimum(places, 0)], [0, 1]
    ids[0] = jnp.where(places < 0, -1, ids[0])
    return trees.runs(jnp.stack(ids), apart=segments, widest=widest)

  def _check(self, cache) -> None:
    if self.causal or cache is not None:
      raise ValueError(NOT_CAUSAL)
    if self.position_encoding == "alibi":
      raise ValueError(
        "position_encoding is 'alibi', a bias of each score, and the scores of "
        "hierarchical attention are of means; it goes with 'rotary', 'learned' "
        "and 'none'"
      )
    if self.segments_are not in SEGMENTS:
      raise registry.unknown("segments_are", self.segments_are, SEGMENTS)
