"""A checksum of a tree of arrays, computed where the arrays are."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from training import paths


def fingerprint(tree: Any) -> dict[str, int]:
  """One 32-bit number per leaf, that changes when any bit of it does.

  Each element's bits are multiplied by an odd number that depends on its
  position, and summed modulo 2^32. Integer sums do not depend on their order,
  so the result is the same for every sharding, and only one number per leaf
  leaves the device. It guards against damaged files, not against forgery.

  Args:
    tree: arrays of any dtype, random keys included.

  Returns:
    `{path name: number}`.
  """
  named = paths.flatten_with_names(tree)
  return {name: int(n) for name, n in jax.device_get(_jitted(named)).items()}


def digest(tree: Any) -> str:
  """The fingerprint of all leaves together, as 16 hexadecimal digits."""
  text = json.dumps(fingerprint(tree), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@jax.jit
def _jitted(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return {name: _leaf(leaf) for name, leaf in named.items()}


def _leaf(x: jax.Array) -> jax.Array:
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  bits = lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  position = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    position = position * size + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  # Knuth's multiplicative hash, then made odd: an odd factor is invertible, so
  # no change of a single element can vanish.
  return (bits * ((position * jnp.uint32(2654435769)) | 1)).sum(
    dtype=jnp.uint32
  )
