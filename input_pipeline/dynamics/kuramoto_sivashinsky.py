"""The Kuramoto-Sivashinsky equation on a ring.

u_t + u u_x + u_xx + u_xxxx = 0, by the fourth-order exponential integrator of
Cox and Matthews in the stable form of Kassam and Trefethen, "Fourth-order
time-stepping for stiff PDEs" (2005), as in the reference generator of
`pvlachas/RNN-RC-Chaos` (512 points, length 100, step 0.25).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import checks
from input_pipeline.dynamics import lorenz96

# Of the circle around each eigenvalue over which the coefficients are means.
_CONTOUR_POINTS = 16


@dataclasses.dataclass(frozen=True)
class KuramotoSivashinsky:
  """Values of u at points that are equally far apart.

  The highest wave of an even number of points has no first derivative on them,
  so the product leaves it out. The reference leaves it out of the linear part
  too, and what noise it begins with stays there for ever; here it decays.

  Attributes:
    size: points.
    length: of the ring, in the equation's unit.
    step: see `integrators.System`.
    every: likewise.
    transient: likewise; the reference discards 2500.
  """

  size: int = 512
  length: float = 100.0
  step: float = 0.25
  every: int = 1
  transient: float = 500.0

  def __post_init__(self):
    checks.check_integer("size", self.size, 8)
    if self.size % 2:
      raise ValueError(
        f"size is {self.size}, but points must be even in number."
      )
    lorenz96.check_positive("length", self.length)
    lorenz96.check_time(self)

  def initial(self, rng: np.random.Generator) -> np.ndarray:
    """Noise of 0.01, uniform about zero."""
    return 0.01 * (rng.random(self.size) - 0.5)

  @property
  def wave_numbers(self) -> np.ndarray:
    """Of the waves of a real Fourier transform, float64 [size / 2 + 1]."""
    return 2 * np.pi / self.length * np.arange(self.size // 2 + 1)

  @property
  def growth(self) -> np.ndarray:
    """Rate at which small waves grow, k^2 - k^4, [size / 2 + 1]."""
    return self.wave_numbers**2 - self.wave_numbers**4

  def advance(self, state: jax.Array) -> jax.Array:
    """One step; the coefficients are numbers that the program holds."""
    whole, half, q, f1, f2, f3 = _coefficients(self)
    factor = -0.5j * self.wave_numbers
    # What it gives is imaginary, which not every inverse transform drops.
    factor[-1] = 0

    def product(waves):
      return factor * jnp.fft.rfft(jnp.fft.irfft(waves, self.size) ** 2)

    waves = jnp.fft.rfft(state)
    n_v = factor * jnp.fft.rfft(state**2)
    a = half * waves + q * n_v
    n_a = product(a)
    n_b = product(half * waves + q * n_a)
    n_c = product(half * a + q * (2 * n_b - n_v))
    waves = whole * waves + n_v * f1 + 2 * (n_a + n_b) * f2 + n_c * f3
    return jnp.fft.irfft(waves, self.size)

  def observe(self, state: jax.Array) -> jax.Array:
    """All of it."""
    return state


@functools.lru_cache
def _coefficients(system: KuramotoSivashinsky) -> tuple[np.ndarray, ...]:
  """exp(hL), exp(hL / 2), and those of the four products.

  Differences of numbers that nearly cancel where hL is small, so they are means
  over a circle around it (Kassam and Trefethen, section 3).
  """
  h, linear = system.step, system.growth
  angles = np.pi * (np.arange(1, _CONTOUR_POINTS + 1) - 0.5) / _CONTOUR_POINTS
  z = h * linear[:, None] + np.exp(1j * angles)
  exp = np.exp(z)

  def mean(values):
    return h * values.mean(1).real

  return (
    np.exp(h * linear),
    np.exp(h * linear / 2),
    mean((np.exp(z / 2) - 1) / z),
    mean((-4 - z + exp * (4 - 3 * z + z**2)) / z**3),
    mean((2 + z + exp * (-2 + z)) / z**3),
    mean((-4 - 3 * z - z**2 + exp * (4 - z)) / z**3),
  )
