import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from training import fingerprints


@pytest.fixture
def tree():
  rng = np.random.default_rng(0)
  return {
    "float32": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    "bfloat16": jnp.asarray(rng.normal(size=(5,)), jnp.bfloat16),
    "int32": jnp.arange(6).reshape(2, 3),
    "bool": jnp.array([True, False]),
    "scalar": jnp.float32(2),
    "key": jax.random.key(3),
    "none": None,
  }


def test_any_flipped_bit_changes_the_number_of_its_leaf(tree):
  before = fingerprints.fingerprint(tree)
  assert sorted(before) == sorted(set(tree) - {"none"})
  for name in ("float32", "bfloat16", "int32"):
    raw = np.array(tree[name])
    for byte in range(raw.nbytes):
      damaged = raw.copy()
      damaged.reshape(-1).view(np.uint8)[byte] ^= 1 << byte % 8
      after = fingerprints.fingerprint(tree | {name: jnp.asarray(damaged)})
      changed = [n for n in before if before[n] != after[n]]
      assert changed == [name]


def test_two_exchanged_elements_change_it():
  x = jnp.arange(1.0, 9.0)
  y = x.at[0].set(x[5]).at[5].set(x[0])
  assert fingerprints.fingerprint(x) != fingerprints.fingerprint(y)


def test_does_not_depend_on_the_sharding(tree):
  mesh = jax.make_mesh((4,), ("d",))
  split = jax.device_put(
    tree["float32"], NamedSharding(mesh, PartitionSpec("d"))
  )
  assert fingerprints.fingerprint(split) == fingerprints.fingerprint(
    tree["float32"]
  )
