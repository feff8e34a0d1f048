"""Image tokens that attention is made to look at more, by their logits.

"Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large
Vision-Language Model" (arXiv 2501.12206, later PAINT) raises the logits of
image tokens that the ViT itself attends to, z + g |z|, in the row that says the
next token; `token_selection` has which they are. PAI ("Paying More Attention to
Image", 2024) is the case of all image tokens with one gain, `pai_gains`.

The rule depends on a constant that all logits of a row share, though the
softmax does not, and multiplies a weight by exp(g |z|): also that of a token
which was strongly rejected. Weights alone do not say z, so their row's
log-sum-exp has to come with them; log w in the place of z is another rule.
"""

import jax
import jax.numpy as jnp


def token_gains(
  local: jax.Array,
  summary: jax.Array,
  local_gain: float | jax.Array = 0.7,
  summary_gain: float | jax.Array = 0.4,
) -> jax.Array:
  """The gain of each image token: alpha of local ones, beta of summary ones.

  Args:
    local: bool [..., image tokens].
    summary: bool, likewise; it counts where both are true.
    local_gain: alpha.
    summary_gain: beta.

  Returns:
    float32 [..., image tokens].

  Raises:
    ValueError: if the shapes differ, or a gain is a negative number.
  """
  if local.shape != summary.shape:
    raise ValueError(
      f"local has shape {local.shape} and summary {summary.shape}; they must "
      "be alike"
    )
  for name, gain in (
    ("local_gain", local_gain),
    ("summary_gain", summary_gain),
  ):
    if isinstance(gain, int | float) and not gain >= 0:
      raise ValueError(f"{name} is {gain}; it must be 0 or more")
  gains = jnp.where(local, local_gain, 0.0)
  return jnp.where(summary, summary_gain, gains).astype(jnp.float32)


def pai_gains(image: jax.Array, gain: float | jax.Array = 0.5) -> jax.Array:
  """The gains of PAI: the same for all image tokens, float32.

  Args:
    image: bool [..., tokens], which are the image's.
    gain: of them.
  """
  return token_gains(image, jnp.zeros_like(image), gain)


def boost_logits(
  logits: jax.Array, gains: jax.Array, head_gains: jax.Array | None = None
) -> jax.Array:
  """Raises logits by their own size, z + g |z|.

  Args:
    logits: z [batch, heads, queries, keys], -inf where a key is hidden, which
      stays so. All rows are boosted: `boost_rows` leaves some as they are.
    gains: [batch or 1, keys], 0 for tokens that are not boosted.
    head_gains: factors of the gains, [heads] or [batch, heads], see
      `head_gains`; 1 if None, as the released code has it.

  Returns:
    Those, float32.

  Raises:
    ValueError: if the shapes do not fit.
  """
  gains = _gains(logits, gains, head_gains)
  logits = logits.astype(jnp.float32)
  # Infinite times zero would be no number, in gradients too.
  seen = jnp.isfinite(logits)
  z = jnp.where(seen, logits, 0.0)
  return jnp.where(seen, z + gains * jnp.abs(z), logits)


def boost_weights(
  weights: jax.Array,
  log_sum_exp: jax.Array,
  gains: jax.Array,
  head_gains: jax.Array | None = None,
) -> jax.Array:
  """Does to weights what `boost_logits` does before the softmax.

  Args:
    weights: [batch, heads, queries, keys] of a softmax; those that are 0 are of
      hidden keys.
    log_sum_exp: [batch, heads, queries] of the logits, as kernels return it.
    gains: as there.
    head_gains: as there.

  Returns:
    Weights, float32.

  Raises:
    ValueError: if the shapes do not fit.
  """
  if log_sum_exp.shape != weights.shape[:-1]:
    raise ValueError(
      f"log_sum_exp has shape {log_sum_exp.shape}; for weights of shape "
      f"{weights.shape} it must have {weights.shape[:-1]}"
    )
  weights = weights.astype(jnp.float32)
  seen = weights > 0
  logits = jnp.log(jnp.where(seen, weights, 1.0)) + log_sum_exp[..., None]
  logits = jnp.where(seen, logits, -jnp.inf)
  boosted = jax.nn.softmax(boost_logits(logits, gains, head_gains), axis=-1)
  # A row that sees nothing has no weights.
  return jnp.where(seen.any(-1, keepdims=True), boosted, weights)


def boost_rows(
  logits: jax.Array, boosted: jax.Array, rows: jax.Array | None = None
) -> jax.Array:
  """Takes some queries' logits from `boosted`, and leaves others.

  Args:
    logits: [batch, heads, queries, keys].
    boosted: likewise.
    rows: bool [batch, queries]; the last query alone if None, as published.
  """
  if rows is None:
    rows = jnp.arange(logits.shape[2])[None] == logits.shape[2] - 1
  return jnp.where(rows[:, None, :, None], boosted, logits)


def head_gains(masses: jax.Array) -> jax.Array:
  """Factors of heads that look at images less than others: min(1, s / mean s).

  Ours: the paper's first abstract speaks of gains by head, of which neither its
  tables nor its code have any.

  Args:
    masses: s, [..., heads], each head's mean mass on the image over a set of
      examples.
  """
  mean = masses.mean(-1, keepdims=True)
  share = masses / jnp.where(mean > 0, mean, 1.0)
  return jnp.where(mean > 0, jnp.minimum(share, 1.0), 1.0)


def image_mass(weights: jax.Array, image: jax.Array) -> jax.Array:
  """The weight of all image tokens together, float32 [batch, heads, queries].

  Args:
    weights: [batch, heads, queries, keys].
    image: bool [batch or 1, keys].
  """
  image = image[:, None, None]
  return jnp.where(image, weights.astype(jnp.float32), 0.0).sum(-1)


def with_image_mass(
  logits: jax.Array, image: jax.Array, mass: jax.Array
) -> jax.Array:
  """Adds one number to a row's image logits, for a mass they shall have.

  Ours, the control of a boost: as much image, with no token preferred.

  Args:
    logits: [batch, heads, queries, keys], -inf where a key is hidden.
    image: bool [batch or 1, keys].
    mass: [batch, heads, queries], of the row's image tokens afterwards.

  Returns:
    Logits, float32. Rows that see image tokens alone, or none, stay as they
    are, for their mass is what it is.
  """
  logits = logits.astype(jnp.float32)
  image = image[:, None, None]
  now = jax.nn.logsumexp(jnp.where(image, logits, -jnp.inf), axis=-1)
  other = jax.nn.logsumexp(jnp.where(image, -jnp.inf, logits), axis=-1)
  can = jnp.isfinite(now) & jnp.isfinite(other) & (mass > 0) & (mass < 1)
  mass = jnp.where(can, mass, 0.5)
  added = jnp.log(mass) - jnp.log1p(-mass) - jnp.where(can, now - other, 0.0)
  added = jnp.where(can, added, 0.0)[..., None]
  return jnp.where(image, logits + added, logits)


def guide(
  image_logits: jax.Array,
  text_logits: jax.Array,
  scale: float = 1.1,
  least: float = 0.1,
) -> jax.Array:
  """PAI's guidance of the next token, away from what the text alone says.

  Args:
    image_logits: of the model that sees the image, [..., classes].
    text_logits: of the same without it, whose attention is not boosted.
    scale: g of log p = g (log p_image - log p_text) + log p_text.
    least: tokens below this part of the largest p_image have no probability.

  Returns:
    float32 [..., classes], logarithms of probabilities that sum to one.

  Raises:
    ValueError: if `least` is not from 0 to 1.
  """
  if not 0 <= least <= 1:
    raise ValueError(f"least is {least}; it must be from 0 to 1")
  image = jax.nn.log_softmax(image_logits.astype(jnp.float32))
  text = jax.nn.log_softmax(text_logits.astype(jnp.float32))
  guided = scale * (image - text) + text
  # By probabilities: the logarithm of 0 would remove nothing, too, but loudly.
  kept = jnp.exp(image - image.max(-1, keepdims=True)) >= least
  return jax.nn.log_softmax(jnp.where(kept, guided, -jnp.inf))


def _gains(logits, gains, head_gains) -> jax.Array:
  """Those of all heads, [batch or 1, heads or 1, 1, keys]."""
  batch, heads, _, keys = logits.shape
  if gains.ndim != 2 or gains.shape not in ((batch, keys), (1, keys)):
    raise ValueError(
      f"gains have shape {gains.shape}; for logits of shape {logits.shape} "
      f"they must be [{batch} or 1, {keys}]"
    )
  gains = gains.astype(jnp.float32)[:, None, None]
  if head_gains is None:
    return gains
  if head_gains.shape not in ((heads,), (batch, heads)):
    raise ValueError(
      f"head_gains have shape {head_gains.shape}; for logits of shape "
      f"{logits.shape} they must be [{heads}] or [{batch}, {heads}]"
    )
  return gains * head_gains.reshape(-1, heads, 1, 1).astype(jnp.float32)
