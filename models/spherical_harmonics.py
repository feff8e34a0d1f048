"""Real spherical harmonics as polynomials, without tables.

They are homogeneous in the vector, so a vector of zeros has zeros for every
degree but the first, and derivatives of any order are finite everywhere.
"""

import math

import jax
import jax.numpy as jnp


def spherical_harmonics(directions: jax.Array, degrees: int) -> list[jax.Array]:
  """Returns Y_l of directions, for l = 0, 1, ..., degrees - 1.

  Of "component" normalisation: the squares of the 2 l + 1 numbers of degree l
  sum to 2 l + 1, so that the mean of each over the sphere is one, and
  sum_m Y_lm(a) Y_lm(b) = (2 l + 1) P_l(cos(a, b)). Within a degree m goes from
  -l to l.

  Args:
    directions: [..., 3], of length one, or zeros for no direction.
    degrees: how many degrees.

  Returns:
    A list of [..., 2 l + 1].
  """
  x, y, z = (directions[..., i] for i in range(3))
  square = x**2 + y**2 + z**2
  # (x + i y)^m, real and imaginary part.
  rings = [(jnp.ones_like(x), jnp.zeros_like(x))]
  for _ in range(degrees - 1):
    cosine, sine = rings[-1]
    rings.append((x * cosine - y * sine, x * sine + y * cosine))
  made = []
  for m in range(degrees):
    # Legendre's functions without the power of sin(theta) that the ring has,
    # times |v|^(l - m): [l - m].
    column = [jnp.full_like(z, math.prod(range(1, 2 * m, 2)))]
    for degree in range(m + 1, degrees):
      last = (2 * degree - 1) * z * column[-1]
      if len(column) > 1:
        last -= (degree + m - 1) * square * column[-2]
      column.append(last / (degree - m))
    made.append(column)
  return [_degree(degree, made, rings) for degree in range(degrees)]


def _degree(degree, made, rings):
  """Puts the numbers of a degree side by side, m from -l to l."""
  values = {}
  for m in range(degree + 1):
    factor = (2 * degree + 1) * math.factorial(degree - m)
    factor *= (2 if m else 1) / math.factorial(degree + m)
    own = math.sqrt(factor) * made[m][degree - m]
    cosine, sine = rings[m]
    values[m] = own * cosine
    if m:
      values[-m] = own * sine
  return jnp.stack([values[m] for m in sorted(values)], axis=-1)
