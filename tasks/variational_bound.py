"""The bound that a model with a learned variance is trained by, too.

"Improved Denoising Diffusion Probabilistic Models" (arXiv 2102.09672), as the
code of DiT has it: the mean of the step is held, so that the bound moves the
variance alone, and it counts beside the squared error without a factor.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from generation.paths import Path


def bits(
  clean: jax.Array,
  noisy: jax.Array,
  time: jax.Array,
  prediction: jax.Array,
  variance: jax.Array,
  path: Path,
) -> jax.Array:
  """Bits a number that a step of DDPM costs, float32 [batch].

  The Kullback-Leibler divergence of the true step backward, q(x of t - 1 | x of
  t, clean), from the model's; at t = 0 the code length of the pixels, whose 256
  values lie from -1 to 1.

  Args:
    clean: data [batch, ...].
    noisy: of the same shape.
    time: whole numbers float [batch], from 0.
    prediction: of the model, which no gradient reaches.
    variance: what it says of the variance: -1 is the least, beta (1 -
      alpha_bar of t - 1) / (1 - alpha_bar), and 1 the greatest, beta; between
      them the logarithm is linear.
    path: of DDPM.
  """
  table = jnp.asarray(_table(path), jnp.float32)[time.astype(jnp.int32)]
  shape = (-1,) + (1,) * (clean.ndim - 1)
  of_clean, of_noisy, least, most = (x.reshape(shape) for x in table.T)
  guess = path.clean(jax.lax.stop_gradient(prediction), noisy, time)
  mean = of_clean * guess + of_noisy * noisy
  true = of_clean * clean + of_noisy * noisy
  log_variance = least + (variance + 1) / 2 * (most - least)
  divergence = _divergence(true, least, mean, log_variance)
  code = _code_length(clean, mean, log_variance / 2)
  nats = jnp.where(time.reshape(shape) == 0, code, divergence)
  return nats.mean(range(1, nats.ndim)) / math.log(2)


@functools.cache
def _table(path: Path) -> np.ndarray:
  """By time: shares of clean and noisy in the mean, least and most variance.

  The two variances are logarithms. The least one at time 0 would be none, and
  is that of time 1.
  """
  log_alpha_bar = 2 * np.log(path.alpha(np.arange(-1.0, path.steps)))
  alpha_bar, before = np.exp(log_alpha_bar[1:]), np.exp(log_alpha_bar[:-1])
  beta = -np.expm1(np.diff(log_alpha_bar))
  rest = 1 - alpha_bar
  of_clean = beta * np.sqrt(before) / rest
  of_noisy = (1 - before) * np.sqrt(1 - beta) / rest
  least = beta * (1 - before) / rest
  least[0] = least[1]
  return np.stack([of_clean, of_noisy, np.log(least), np.log(beta)], -1)


def _divergence(mean_1, log_variance_1, mean_2, log_variance_2):
  """KL(N(mean_1, ...) || N(mean_2, ...)) in nats, of each number."""
  return 0.5 * (
    log_variance_2
    - log_variance_1
    + jnp.expm1(log_variance_1 - log_variance_2)
    + jnp.square(mean_1 - mean_2) * jnp.exp(-log_variance_2)
  )


def _code_length(x, mean, log_deviation):
  """Nats of a pixel among 256, whose outer ones reach to infinity."""
  inverse = jnp.exp(-log_deviation)
  above = (x - mean + 1 / 255) * inverse
  below = (x - mean - 1 / 255) * inverse
  inside = jax.scipy.stats.norm.cdf(above) - jax.scipy.stats.norm.cdf(below)
  return -jnp.select(
    [x < -0.999, x > 0.999],
    [jax.scipy.stats.norm.logcdf(above), jax.scipy.stats.norm.logsf(below)],
    jnp.log(jnp.maximum(inside, 1e-12)),
  )
