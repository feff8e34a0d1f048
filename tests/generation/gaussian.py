"""Data of one Gaussian a channel: what to predict, and where paths lead."""

import functools

import jax.numpy as jnp
import numpy as np

MEAN = np.array([0.5, -1.0, 2.0])
DEVIATION = np.array([0.3, 1.0, 0.05])


@functools.cache
def denoiser(path):
  """Predicts exactly, for data N(MEAN, DEVIATION^2) of three channels."""

  def denoise(x, time, state):
    alpha, sigma = path.alpha(time), path.sigma(time)
    mean = MEAN.reshape((1,) * (x.ndim - 1) + (3,))
    variance = (DEVIATION**2).reshape(mean.shape)
    total = alpha**2 * variance + sigma**2
    clean = mean + alpha * variance / total * (x - alpha * mean)
    noise = sigma / total * (x - alpha * mean)
    velocity = {
      "_Flow": noise - clean,
      "_Ddpm": alpha * noise - sigma * clean,
    }[type(path).__name__]
    named = {"clean": clean, "noise": noise, "velocity": velocity}
    return named[path.prediction], state

  return denoise


def solution(path, x, start, end):
  """Where the flow of probability takes x from one time to another."""
  spread = lambda t: np.sqrt(
    (path.alpha(t) * DEVIATION) ** 2 + path.sigma(t) ** 2
  )
  apart = np.asarray(x, np.float64) - path.alpha(start) * MEAN
  return path.alpha(end) * MEAN + apart * spread(end) / spread(start)


def draw(path, time, rows=4, seed=0):
  """x [rows, 3] of the path at a time, float64."""
  values = np.random.default_rng(seed).normal(size=(rows, 3))
  spread = np.sqrt((path.alpha(time) * DEVIATION) ** 2 + path.sigma(time) ** 2)
  return jnp.asarray(path.alpha(time) * MEAN + spread * values)
