"""Which image tokens a ViT's own attention marks.

"Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large
Vision-Language Model" (arXiv 2501.12206): *local* tokens are those that its
class token attends to most in the first layer, *summary* tokens the outliers of
that near the end, and *spatial* tokens those that all others attend to.
"""

import jax
import jax.numpy as jnp


def class_attention(weights: jax.Array) -> jax.Array:
  """What a class token before the patches attends to, summed over heads.

  Args:
    weights: [batch, heads, 1 + patches, 1 + patches].

  Returns:
    float32 [batch, patches], u of the paper.

  Raises:
    ValueError: as `attention_received`.
  """
  return _checked(weights).sum(1)[:, 0, 1:]


def attention_received(
  weights: jax.Array, class_token: bool = False
) -> jax.Array:
  """What tokens receive of all queries: the mean over heads and queries.

  Ours: for ViTs that have no class token, and for spatial tokens, of which the
  released code sums each row's weights and so ranks rounding errors.

  Args:
    weights: [batch, heads, tokens, tokens].
    class_token: whether the first token is one, which does not count as a
      query nor as a key.

  Returns:
    float32 [batch, patches].

  Raises:
    ValueError: if weights are not square maps.
  """
  first = int(class_token)
  return _checked(weights)[:, :, first:, first:].mean((1, 2))


def outliers(values: jax.Array) -> jax.Array:
  """How many are above Q3 + 1.5 (Q3 - Q1), int32 [...].

  Args:
    values: [..., tokens].
  """
  low, high = jnp.quantile(values, jnp.array([0.25, 0.75]), axis=-1)
  fence = high + 1.5 * (high - low)
  return (values > fence[..., None]).sum(-1)


def top(values: jax.Array, count: int | jax.Array) -> jax.Array:
  """Marks the largest, of equal ones the first, bool [..., tokens].

  Args:
    values: [..., tokens].
    count: how many, of all or [...] of each.
  """
  order = jnp.argsort(-values, axis=-1, stable=True)
  ranks = jnp.argsort(order, axis=-1)
  count = jnp.broadcast_to(jnp.asarray(count), values.shape[:-1])
  return ranks < count[..., None]


def select(
  early: jax.Array,
  late: jax.Array,
  share: float = 0.25,
  *,
  spatial: jax.Array | None = None,
  spatial_share: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Selects the local and the summary tokens of images.

  Args:
    early: of the first layer of the ViT, [batch, patches], by
      `class_attention`, or by `attention_received` if it has no class token.
    late: of the last layer but one, likewise.
    share: of the patches, that are local.
    spatial: `attention_received` in an early layer; needed with a
      `spatial_share`.
    spatial_share: of the patches, that are local too for this reason.

  Returns:
    (local, summary): bool [batch, patches], of which no token is both.

  Raises:
    ValueError: if shapes differ or a share is not from 0 to 1.
  """
  for name, value in (("share", share), ("spatial_share", spatial_share)):
    if not 0 <= value <= 1:
      raise ValueError(f"{name} is {value}; it must be from 0 to 1")
  if early.shape != late.shape:
    raise ValueError(
      f"early has shape {early.shape} and late {late.shape}; they must be alike"
    )
  patches = early.shape[-1]
  summary = top(late, outliers(late))
  local = top(early, int(share * patches))
  if spatial_share:
    if spatial is None or spatial.shape != early.shape:
      raise ValueError(
        f"spatial is {None if spatial is None else spatial.shape}; with "
        f"spatial_share={spatial_share} it must have shape {early.shape}"
      )
    local |= top(spatial, int(spatial_share * patches))
  return local & ~summary, summary


def random_like(
  key: jax.Array, local: jax.Array, summary: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Random tokens, as many of each image: the control of a selection.

  Args:
    key: of the draw.
    local: bool [batch, patches].
    summary: likewise.

  Returns:
    (local, summary), as `select`.
  """
  noise = jax.random.uniform(key, local.shape)
  few, all_of_them = summary.sum(-1), (local | summary).sum(-1)
  chosen = top(noise, few)
  return top(noise, all_of_them) & ~chosen, chosen


def _checked(weights: jax.Array) -> jax.Array:
  if weights.ndim != 4 or weights.shape[2] != weights.shape[3]:
    raise ValueError(
      f"weights have shape {weights.shape}; they must be [batch, heads, "
      "tokens, tokens]"
    )
  return weights.astype(jnp.float32)
