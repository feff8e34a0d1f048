"""Which token is in which slot."""

import jax.numpy as jnp
import numpy as np

from models import attention_cache


def test_keys_of_a_ring_are_those_of_the_last_tokens():
  shape = (1, 7, 1, 2)
  keys = np.arange(14, dtype=np.float32).reshape(shape)
  positions = np.arange(7, dtype=np.int32)[None]
  cache = attention_cache.empty(1, 3, (1, 2), (1, 2), jnp.float32)
  for start, end in ((0, 2), (2, 6), (6, 7)):
    part = slice(start, end)
    new = attention_cache.Seen(
      *(x[:, part] for x in (keys, -keys, positions, positions))
    )
    seen, cache = attention_cache.extend(cache, new, ring=True)
  # Token n is in slot n % 3.
  assert cache["positions"].tolist() == [[6, 4, 5]]
  np.testing.assert_array_equal(cache["keys"][0, 0], keys[0, [6, 4, 5], 0])
  np.testing.assert_array_equal(seen.values[0, :, 0], -keys[0, [6, 4, 5], 0])
