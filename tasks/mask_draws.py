"""What masked generation draws of an example: visible places, times, noise.

All functions are of one example and its key, to be mapped over a batch. So what
is drawn for an example depends on no other one, on no micro-batch and on no
device.
"""

import jax
import jax.numpy as jnp
import ml_collections


def most_visible(ratio: ml_collections.ConfigDict, places: int) -> int:
  """How many of the places are visible at most.

  Args:
    ratio: `config.mask_ratio`.
    places: number of tokens of an image, N.
  """
  return max(1, round((1 - ratio.low) * places))


def visible_count(
  key: jax.Array, ratio: ml_collections.ConfigDict, places: int
) -> jax.Array:
  """Draws how many places are visible, round((1 - r) N); int32 [].

  The mask ratio r is of a normal distribution with `ratio.mean` and
  `ratio.deviation` within [`ratio.low`, `ratio.high`] (arXiv 2406.11838,
  section 3.3).
  """
  low, high = (
    (bound - ratio.mean) / ratio.deviation for bound in (ratio.low, ratio.high)
  )
  normal = jax.random.truncated_normal(key, low, high)
  share = 1 - (ratio.mean + ratio.deviation * normal)
  count = jnp.round(share * places).astype(jnp.int32)
  return jnp.clip(count, 0, most_visible(ratio, places))


def visible_places(
  key: jax.Array, count: jax.Array, places: int, size: int
) -> jax.Array:
  """Draws `count` places, each once: int32 [size], padded with `places`."""
  order = jax.random.permutation(key, places)[:size]
  return jnp.where(jnp.arange(size) < count, order, places)


def times_and_noise(
  key: jax.Array, draws: int, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Draws a time for each token, and noise, `draws` times.

  Times are 1000 - int(1000 sigmoid(n)), n normal: those of a descending table
  of 1000, from 1000 for noise alone to 1.

  Args:
    key: of the example.
    draws: how often.
    tokens: [N, token_dim].

  Returns:
    Times [draws, N], whole numbers in float32, and noise [draws, N, token_dim].
  """
  time_key, noise_key = jax.random.split(key)
  share = jax.nn.sigmoid(jax.random.normal(time_key, (draws, len(tokens))))
  times = 1000 - jnp.floor(1000 * share)
  return times, jax.random.normal(noise_key, (draws, *tokens.shape))
