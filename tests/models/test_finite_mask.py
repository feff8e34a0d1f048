"""The same mask, but keys and values are not copied to hide what is NaN."""

import jax
import jax.numpy as jnp
import numpy as np

from attention import dot_product_attention, masks
from models.finite_mask import FiniteMask


def test_it_is_the_mask_it_is_made_of():
  numbers = jnp.asarray([[0, 0, 1, 1, 2, 2, 2, 3]])
  mask = masks.causal() & masks.segments(numbers)
  finite = FiniteMask(mask)
  np.testing.assert_array_equal(finite.dense(8, 8), mask.dense(8, 8))
  np.testing.assert_array_equal(
    finite.tile_states(8, 8, 4, 2), mask.tile_states(8, 8, 4, 2)
  )
  assert finite.in_mixed_tile() == mask.in_mixed_tile()


def test_nothing_is_written_over_keys():
  x = jnp.ones((2, 8, 1, 4))

  def selects(mask):
    attend = lambda x: dot_product_attention(x, x, x, mask=mask)
    jaxpr = jax.make_jaxpr(attend)(x).jaxpr
    return str(jaxpr).count("f32[2,8,1,4] = jit[name=_where") + str(
      jaxpr
    ).count("f32[2,8,1,4] = select_n")

  mask = masks.segments(jnp.zeros((2, 8), jnp.int32))
  assert selects(mask) > 0
  assert selects(FiniteMask(mask)) == 0
