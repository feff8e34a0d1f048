"""DiffQKV: queries, keys and values with heads and widths of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import mixer_base, registry

QUERY_FORMS = ("linear", "gated")


class UnequalHeads(mixer_base.SequenceMixer):
  """Projections of DiffQKV attention (Sigma, arXiv 2501.13629, section 2).

  Query head i uses key head i * key_heads // heads and value head
  i * value_heads // heads. What is cached is what costs: the paper has few
  heads of keys, more of values, and spends parameters on queries, which are not
  cached. With all fields at their defaults it is attention with grouped queries
  (GQA), whose extremes are one head for all (MQA) and one for each (MHA).

  Attributes:
    key_heads: heads of keys, a divisor of `heads`; 0 for `kv_heads`.
    value_heads: heads of values, a divisor of `heads`; 0 for `kv_heads`.
    key_dim: channels of a cached key, which one linear map for each head
      expands to `head_dim` before the product; 0 for `head_dim` and no such
      map. The paper says no more of the map than "feed-forward": that it is
      linear is reconstructed, and that an expanded key is normalised and turned
      to its position, and not a cached one, is our choice.
    value_dim: channels of a value; 0 for `head_dim`.
    query_hidden: channels between `x` and the queries (augmented Q); 0 for one
      projection.
    query_form: what lies between: "linear", two linear maps, or "gated",
      silu(gate(x)) * expand(x) before the second. The paper prints neither;
      "gated" is reconstructed from its comparison with a SwiGLU layer of as
      many parameters.
  """

  key_heads: int = 0
  value_heads: int = 0
  key_dim: int = 0
  value_dim: int = 0
  query_hidden: int = 0
  query_form: str = "gated"

  def heads_of(self, name: str) -> int:
    """See `SequenceMixer.heads_of`."""
    field = f"{name}_heads"
    if name == "query" or not getattr(self, field):
      return super().heads_of(name)
    return self.divisor(field)

  def width_of(self, name: str) -> int:
    """See `SequenceMixer.width_of`."""
    if name == "query":
      return self.head_dim
    field = f"{name}_dim"
    if getattr(self, field) < 0:
      raise ValueError(
        f"{field} is {getattr(self, field)}; it must be a number of channels, "
        f"or 0 for head_dim={self.head_dim}"
      )
    return getattr(self, field) or self.head_dim

  def project(self, x: jax.Array, name: str) -> jax.Array:
    """See `SequenceMixer.project`.

    Raises:
      ValueError: if `query_form` is not known.
    """
    if name == "query" and self.query_hidden:
      if self.query_form not in QUERY_FORMS:
        raise registry.unknown("query_form", self.query_form, QUERY_FORMS)
      hidden = self._dense((self.query_hidden,), "query_expand")(x)
      if self.query_form == "gated":
        hidden *= nn.silu(self._dense((self.query_hidden,), "query_gate")(x))
      x = hidden
    return super().project(x, name)

  def placed(self, heads: jax.Array, name: str, places: jax.Array) -> jax.Array:
    """See `SequenceMixer.placed`: not of keys that wait to be expanded."""
    if name == "key" and self.key_dim:
      return heads
    return super().placed(heads, name, places)

  def expanded(self, keys: jax.Array, places: jax.Array | None) -> jax.Array:
    """Returns keys as the product takes them, of keys as the cache has them.

    Args:
      keys: [batch, length, key_heads, key_dim or head_dim].
      places: their positions [batch, length]; 0, 1, 2, ... if None. What a
        negative one, of padding or an empty slot, gives means nothing.
    """
    if not self.key_dim:
      return keys
    # Each head of its own; to the size of what it is made of.
    init = nn.initializers.lecun_normal(batch_axis=(0,))
    shape = (self.heads_of("key"), self.key_dim, self.head_dim)
    kernel = self.param("key_up", init, shape, self.param_dtype)
    keys = jnp.einsum("blhk,hkd->blhd", keys, kernel.astype(keys.dtype))
    places = mixer_base.counted(keys) if places is None else places
    return super().placed(keys, "key", places)
