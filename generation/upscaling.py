"""Larger samples that begin as smaller ones: enlarged, made noisy, denoised."""

from collections.abc import Sequence

import jax
import numpy as np

from attention import checks
from generation.paths import Path


def last_times(path: Path, steps: int, strength: float) -> np.ndarray:
  """Returns the times of the last steps of sampling, float64.

  Args:
    path: of the model.
    steps: of sampling from noise.
    strength: share of them that is left, as in SDEdit (arXiv 2108.01073):
      int(steps * strength), at least one.

  Raises:
    ValueError: if no step is left or more than there are.
  """
  checks.number("strength", strength)
  left = int(steps * strength)
  if not 1 <= left <= steps:
    raise ValueError(
      f"strength is {strength}, which leaves {left} of {steps} steps; it must "
      f"be from {1 / steps:.3g} to 1"
    )
  return path.times(steps)[steps - left :]


def noisy(
  small: jax.Array,
  noise: jax.Array,
  path: Path,
  time: float,
  *,
  method: str = "linear",
) -> jax.Array:
  """Returns small samples enlarged, with the noise of a time.

  FreeSwim (arXiv 2511.14712) enlarges frames bilinearly, Scale-DiT (arXiv
  2510.16325) a latent bicubically. Both do it where the model has no latents
  of its own, as here, to the samples themselves.

  Args:
    small: samples [batch, *sides, channels].
    noise: standard normal [batch, *larger sides, channels].
    path: of the model.
    time: the first of those that are left.
    method: as `jax.image.resize` names them.

  Raises:
    ValueError: if a side would shrink.
  """
  if small.ndim != noise.ndim or any(
    a > b for a, b in zip(small.shape, noise.shape, strict=True)
  ):
    raise ValueError(
      f"small has shape {small.shape} and noise {noise.shape}; it must be as "
      "large or larger along each axis"
    )
  large = jax.image.resize(small, noise.shape, method)
  return path.add_noise(large, noise, np.float32(time))


def sides_times(shape: Sequence[int], factor: int) -> tuple[int, ...]:
  """Returns the sides of a sample whose rows and columns are more."""
  *before, height, width = shape
  return (*before, factor * height, factor * width)
