"""Latents as an autoencoder gives them: a Gaussian for each number.

Moments [..., 2 * channels] are the means, then the logarithms of the variances.
"""

import jax
import jax.numpy as jnp


def mean_and_log_variance(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the two halves of moments, [..., channels] each.

  Raises:
    ValueError: if the last axis has no halves.
  """
  channels = moments.shape[-1]
  if channels % 2:
    raise ValueError(
      f"moments have shape {moments.shape}; the last axis must be even: means, "
      "then logarithms of variances"
    )
  return moments[..., : channels // 2], moments[..., channels // 2 :]


def sample(moments: jax.Array, key: jax.Array) -> jax.Array:
  """Draws latents [..., channels], mean + deviation * noise."""
  mean, log_variance = mean_and_log_variance(moments)
  noise = jax.random.normal(key, mean.shape, mean.dtype)
  return mean + jnp.exp(log_variance / 2) * noise


def kl(moments: jax.Array) -> jax.Array:
  """Returns the divergence from N(0, 1), float32 nats [batch].

  KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2 (arXiv 1312.6114,
  appendix B), summed over all latents of an example.

  Args:
    moments: [batch, ..., 2 * channels].
  """
  mean, log_variance = mean_and_log_variance(moments.astype(jnp.float32))
  nats = (jnp.square(mean) + jnp.expm1(log_variance) - log_variance) / 2
  return nats.sum(range(1, nats.ndim))
