"""Mixup and CutMix of whole batches, on the device.

Mixup: Zhang et al., https://arxiv.org/abs/1710.09412, equation 1.
CutMix: Yun et al., https://arxiv.org/abs/1905.04899, equations 1 and 2.
"""

import math

import jax
import jax.numpy as jnp


def mix(
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  *,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  switch_probability: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
  """Mixes each example with the one before it in the batch.

  Both methods take `weight * x + (1 - weight) * partner` with a weight for
  each pixel and the mean weight for the labels. The weights are the same for
  the whole batch, as in both papers' code. Mixup has one lambda ~
  Beta(alpha, alpha) for all pixels. CutMix has 0 in a box with (before it is
  clipped at the border) the share 1 - lambda of the area, and 1 elsewhere, so
  the mean weight is recomputed from the clipped box.

  In a shuffled batch the one before is as random as a permutation, and shards
  of the batch exchange one example and no more. Examples that are not there are
  passed over, so that the others are mixed as if they were a batch.

  Args:
    key: randomness of this batch.
    images: float `[batch, height, width, channels]`.
    labels: float `[batch, classes]`, one-hot or soft.
    mask: float `[batch]`, 0 for examples that are not there.
    mixup_alpha: of mixup's Beta distribution; 0 turns mixup off.
    cutmix_alpha: of CutMix's Beta distribution; 0 turns CutMix off.
    switch_probability: of CutMix where both are on.

  Returns:
    Mixed images and labels; what is masked may be anything.

  Raises:
    ValueError: for images of integers, unequal batches or a negative alpha.
  """
  _check(images, labels, mask, mixup_alpha, cutmix_alpha, switch_probability)
  height, width = images.shape[1:3]
  mixup_key, cutmix_key, switch_key = jax.random.split(key, 3)
  if not mixup_alpha and not cutmix_alpha:
    return images, labels
  if not cutmix_alpha:
    weights = _mixup_weights(mixup_key, mixup_alpha, height, width)
  elif not mixup_alpha:
    weights = _cutmix_weights(cutmix_key, cutmix_alpha, height, width)
  else:
    weights = jnp.where(
      jax.random.bernoulli(switch_key, switch_probability),
      _cutmix_weights(cutmix_key, cutmix_alpha, height, width),
      _mixup_weights(mixup_key, mixup_alpha, height, width),
    )
  pixel_weights = weights[None, :, :, None].astype(images.dtype)
  label_weight = weights.mean().astype(labels.dtype)
  return (
    _blend(images, _before(images, mask), pixel_weights),
    _blend(labels, _before(labels, mask), label_weight),
  )


def _before(x: jax.Array, mask: jax.Array) -> jax.Array:
  """For each example the last one before it whose mask is not 0."""
  present = mask > 0

  def shift(state):
    x, there, before, found = state
    # Shards exchange one example. Taking any example by its number would
    # gather the whole batch on each of them, in memory even if it never ran.
    x, there = jnp.roll(x, 1, axis=0), jnp.roll(there, 1)
    new = there & ~found
    before = jnp.where(new.reshape(-1, *[1] * (x.ndim - 1)), x, before)
    return x, there, before, found | there

  # Nearly always once will do.
  state = shift((x, present, x, jnp.zeros_like(present)))
  return jax.lax.while_loop(
    lambda state: present.any() & ~state[3].all(), shift, state
  )[2]


def _mixup_weights(
  key: jax.Array, alpha: float, height: int, width: int
) -> jax.Array:
  """One lambda for all pixels: `[height, width]`."""
  return jnp.full((height, width), jax.random.beta(key, alpha, alpha))


def _cutmix_weights(
  key: jax.Array, alpha: float, height: int, width: int
) -> jax.Array:
  """0 in a random box and 1 elsewhere: `[height, width]`."""
  ratio_key, row_key, column_key = jax.random.split(key, 3)
  # Both sides shrink by the same factor, so the box has the image's shape.
  side = jnp.sqrt(1 - jax.random.beta(ratio_key, alpha, alpha))
  in_rows = _random_interval(row_key, height, side)
  in_columns = _random_interval(column_key, width, side)
  return 1.0 - in_rows[:, None] * in_columns[None, :]


def _random_interval(key: jax.Array, size: int, share: jax.Array) -> jax.Array:
  """1.0 within an interval around a uniform centre, else 0.0: `[size]`."""
  length = (size * share).astype(jnp.int32)
  start = jax.random.randint(key, (), 0, size) - length // 2
  position = jnp.arange(size)
  inside = (position >= start) & (position < start + length)
  return inside.astype(jnp.float32)


def _blend(x: jax.Array, partner: jax.Array, weight: jax.Array) -> jax.Array:
  """The sum of both, by weight."""
  return weight * x + (1 - weight) * partner


def _check(images, labels, mask, mixup_alpha, cutmix_alpha, switch_probability):
  """Raises `ValueError` for what `mix` cannot take."""
  if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f"images are {images.dtype}{images.shape}, but must be float [batch,"
      " height, width, channels]; mix after normalising them."
    )
  if labels.ndim != 2 or not jnp.issubdtype(labels.dtype, jnp.floating):
    raise ValueError(
      f"labels are {labels.dtype}{labels.shape}, but must be float [batch,"
      " classes], such as one-hot."
    )
  if not images.shape[0] == labels.shape[0] == mask.shape[0]:
    raise ValueError(
      f"images, labels and mask have batches of {images.shape[0]},"
      f" {labels.shape[0]} and {mask.shape[0]}, but must be of one batch."
    )
  for name, alpha in dict(mixup=mixup_alpha, cutmix=cutmix_alpha).items():
    if not 0 <= alpha < math.inf:
      raise ValueError(
        f"{name}_alpha is {alpha}, but must be finite and at least 0."
      )
  if not 0 <= switch_probability <= 1:
    raise ValueError(
      f"switch_probability is {switch_probability}, but must be in [0, 1]."
    )
