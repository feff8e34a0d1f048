"""How many associations a head of linear attention holds: by which criterion?

A memory sum_i v_i k_i^T is read at a key k_j, which gives v_j + sum_(i != j)
(k_i . k_j) v_i for keys of unit norm: what is not v_j is *interference*. There
are three criteria, with three answers ("Understanding Transformers through the
Lens of Pavlovian Conditioning", arXiv 2508.08289; the derivations are
reconstructed from its abstract), for random keys of `dim` channels:

- worst case: sum_(i != j) |k_i . k_j| < 1 for all j, so that no unit values, be
  they aligned, are lost: O(sqrt(dim)) associations;
- average case: a root mean square error below some share of the values, which
  is sqrt((n - 1) / dim) for values that are independent: O(dim);
- the nearest value is the right one, which holds beyond n = dim.

Keys that were read from a model are taken as well, after `unit`. With a feature
map they are the features, and `dim` is how many of those there are.
"""

import jax
import jax.numpy as jnp
import numpy as np

import attention
from attention import features, linear_normalizers


def unit(x: jax.Array) -> jax.Array:
  """Returns [..., dim] divided by its norm; zeros stay."""
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.where(norm == 0, 1.0, norm)


def random_units(
  key: jax.Array, shape: tuple[int, ...], correlation: float = 0.0
) -> jax.Array:
  """Draws vectors [..., number, dim] of norm one.

  Args:
    key: a random key.
    shape: of what is drawn.
    correlation: the expected product of two of them, from 0 to below 1: all
      have a direction in common.

  Raises:
    ValueError: for another correlation.
  """
  if not 0 <= correlation < 1:
    raise ValueError(
      f"correlation is {correlation}; it must be at least 0 and below 1"
    )
  own, common = jax.random.split(key)
  shared = unit(jax.random.normal(common, (*shape[:-2], 1, shape[-1])))
  own = unit(jax.random.normal(own, shape))
  return unit((1 - correlation) ** 0.5 * own + correlation**0.5 * shared)


def orthonormal(key: jax.Array, number: int, dim: int) -> jax.Array:
  """Draws orthonormal keys [number, dim].

  Raises:
    ValueError: if there are not as many.
  """
  if number > dim:
    raise ValueError(
      f"number is {number}; there are at most dim={dim} orthonormal keys"
    )
  return jax.random.orthogonal(key, dim)[:number]


def recalled(keys: jax.Array, values: jax.Array) -> jax.Array:
  """What linear attention reads at each of its keys: sum_i (k_i . k_j) v_i.

  Args:
    keys: [..., number, dim].
    values: [..., number, channels].

  Returns:
    float32 [..., number, channels].
  """
  lead = values.shape[:-2]
  k, v = (
    x.astype(jnp.float32).reshape(-1, x.shape[-2], 1, x.shape[-1])
    for x in (keys, values)
  )
  out = attention.linear_attention(
    k,
    k,
    v,
    feature_map=features.identity,
    normalizer=linear_normalizers.identity(),
  )
  return out.reshape(*lead, *values.shape[-2:])


def worst_interference(keys: jax.Array) -> jax.Array:
  """The largest sum_(i != j) |k_i . k_j| among the first n keys, for each n.

  Args:
    keys: of unit norm [..., number, dim].

  Returns:
    float32 [..., number], which does not fall.
  """
  products = _products(jnp.abs, keys)
  sums = jnp.cumsum(products, axis=-1)
  # [..., key, n]: only keys that are among the first n.
  number = jnp.arange(keys.shape[-2])
  among = number[:, None] <= number[None, :]
  among = among.reshape((1,) * (sums.ndim - 2) + among.shape)
  return jnp.where(among, sums, 0.0).max(axis=-2)


def root_mean_square_error(keys: jax.Array, values: jax.Array) -> jax.Array:
  """The error of recall over the first n associations, for each n.

  The root of the mean over keys of |y_j - v_j|^2 / |v|^2, with |v|^2 the mean
  square norm of the values.

  Args:
    keys: of unit norm [number, dim].
    values: [number, channels].

  Returns:
    float32 [number].
  """
  products = _products(lambda x: x, keys)
  values = values.astype(jnp.float32)
  number = jnp.arange(len(keys))

  def add(interference, new):
    row, value, n = new
    interference += row[:, None] * value[None, :]
    squares = (interference**2).sum(axis=-1)
    return interference, jnp.where(number <= n, squares, 0.0).sum()

  _, sums = jax.lax.scan(
    add, jnp.zeros_like(values), (products, values, number)
  )
  norms = jnp.cumsum((values**2).sum(axis=-1))
  return jnp.sqrt(sums / norms)


def nearest_is_right(read: jax.Array, values: jax.Array) -> jax.Array:
  """Which of what was read is nearest to its own value.

  Args:
    read: [..., number, channels].
    values: the values in the same order [..., number, channels].

  Returns:
    booleans [..., number].
  """
  products = jnp.einsum("...ic,...jc->...ij", read, values)
  distance = (values**2).sum(axis=-1)[..., None, :] - 2 * products
  own = jnp.arange(read.shape[-2]).reshape((1,) * (read.ndim - 2) + (-1,))
  return distance.argmin(axis=-1) == own


def capacity(curve: jax.Array, limit: float) -> int:
  """The largest n up to which a curve over n stays below a limit.

  Args:
    curve: [..., number], of n = 1, 2, ...; the mean over other axes is taken.
    limit: such as 1 for `worst_interference`.

  Raises:
    ValueError: if it never gets there, so that the capacity is not known.
  """
  curve = np.asarray(curve, np.float64)
  curve = curve.reshape(-1, curve.shape[-1]).mean(axis=0)
  above = np.flatnonzero(curve >= limit)
  if not above.size:
    raise ValueError(
      f"limit is {limit}, and the curve of {curve.size} associations stays "
      f"below, at {curve[-1]:.3g}; give it more"
    )
  return int(above[0])


def slope(dims: np.ndarray, capacities: np.ndarray) -> float:
  """The exponent of capacity as a power of dim, by least squares of logs."""
  return float(np.polyfit(np.log(dims), np.log(capacities), 1)[0])


def residual_error(keys: jax.Array, values: jax.Array) -> jax.Array:
  """The error of a sum over layers of the mean over redundant heads.

  Each layer holds associations of its own, in heads with keys of their own, and
  the residual stream has the sum of what they read. The prediction is
  sqrt((n - 1) / dim) sqrt(layers / heads), *relative to one value*: relative to
  the sum of independent values it does not grow with depth.

  Args:
    keys: of unit norm [layers, heads, number, dim].
    values: of unit norm [layers, number, channels].

  Returns:
    float32 []: the root mean square norm of the error over the number.
  """
  heads = keys.shape[1]
  shape = (values.shape[0], heads, *values.shape[1:])
  read = recalled(keys, jnp.broadcast_to(values[:, None], shape))
  error = (read.mean(axis=1) - values).sum(axis=0)
  return jnp.sqrt((error**2).sum(axis=-1).mean())


def _products(change, keys: jax.Array) -> jax.Array:
  """Returns `change` of the products of two different keys, in float32."""
  keys = keys.astype(jnp.float32)
  products = change(jnp.einsum("...id,...jd->...ij", keys, keys))
  other = 1.0 - jnp.eye(keys.shape[-2])
  return products * other.reshape((1,) * (products.ndim - 2) + other.shape)
