"""Local region attention against masked dense attention and TokenPacker."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import dot_product_attention

# Sides of the queries' grid, and of a cell.
GRIDS = {
  "2x2": ((2, 3), (2, 2)),
  "3x3": ((3, 1), (3, 3)),
  "4x2": ((1, 2), (4, 2)),
}


def _arrays(grid, cell, batch=2, heads=2, dim=5, value_dim=3):
  fine = tuple(a * r for a, r in zip(grid, cell, strict=True))
  rng = np.random.default_rng(sum((*grid, *cell)))
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q = normal(batch, *grid, heads, dim)
  k = normal(batch, *fine, heads, dim)
  v = normal(batch, *fine, heads, value_dim)
  seen = jnp.asarray(rng.random((batch, *fine)) < 0.7)
  # The first query sees nothing, though its cell holds what no one shall see.
  seen = seen.at[0, : cell[0], : cell[1]].set(False)
  return q, k, v, seen


def _dense(q, k, v, seen):
  """All queries and keys in a row, and a mask of who is in whose cell."""
  (rows, columns), (height, width) = q.shape[1:3], k.shape[1:3]
  owner = [
    (y * rows // height) * columns + x * columns // width
    for y in range(height)
    for x in range(width)
  ]
  mask = np.array(owner)[None, :] == np.arange(rows * columns)[:, None]
  mask = mask[None, None] & np.asarray(seen).reshape(len(q), 1, 1, -1)
  flat = lambda x: x.reshape(len(x), -1, *x.shape[3:])
  out = dot_product_attention(
    flat(q),
    flat(k),
    flat(v),
    mask=attention.masks.dense(jnp.asarray(mask)),
    implementation="xla",
  )
  return out.reshape(*q.shape[:-1], v.shape[-1])


@pytest.mark.parametrize(("grid", "cell"), GRIDS.values(), ids=GRIDS)
def test_equals_dense_attention_with_a_mask_of_cells(grid, cell):
  q, k, v, seen = _arrays(grid, cell)

  def values(attend, q, k, v):
    out = attend(q, k, v, seen=seen)
    return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

  grad = lambda attend: jax.jit(
    jax.value_and_grad(
      lambda *x: values(attend, *x), argnums=(0, 1, 2), has_aux=True
    )
  )(q, k, v)
  (_, out), slopes = grad(attention.local_region_attention)
  (_, expected), expected_slopes = grad(_dense)
  np.testing.assert_allclose(out, expected, atol=1e-6)
  assert not out[0, 0, 0].any()
  for own, other in zip(slopes, expected_slopes, strict=True):
    np.testing.assert_allclose(own, other, atol=2e-6)


def test_what_nobody_sees_reaches_nothing():
  q, k, v, seen = _arrays((2, 3), (2, 2))
  expected = attention.local_region_attention(q, k, v, seen=seen)
  hidden = lambda x: jnp.where(seen[..., None, None], x, jnp.nan)
  out, slopes = jax.value_and_grad(
    lambda q, k, v: attention.local_region_attention(q, k, v, seen=seen).sum(),
    argnums=(0, 1, 2),
  )(q, hidden(k), hidden(v))
  np.testing.assert_allclose(out, expected.sum(), rtol=1e-5)
  assert all(jnp.isfinite(slope).all() for slope in slopes)


def test_bfloat16_is_summed_in_float32():
  q, k, v, _ = (x.astype(jnp.bfloat16) for x in _arrays((2, 3), (2, 2), dim=64))
  out = attention.local_region_attention(q, k, v)
  assert out.dtype == jnp.bfloat16
  wide = (x.astype(jnp.float32) for x in (q, k, v))
  expected = attention.local_region_attention(*wide)
  np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))


def test_moving_features_by_a_cell_moves_queries():
  q, k, v, _ = _arrays((2, 3), (2, 2))
  q = jnp.broadcast_to(q[:, :1, :1], q.shape)
  out = attention.local_region_attention(q, k, v)
  moved = attention.local_region_attention(
    q, jnp.roll(k, 2, axis=2), jnp.roll(v, 2, axis=2)
  )
  np.testing.assert_allclose(moved, jnp.roll(out, 1, axis=2), atol=1e-6)


def test_no_array_is_transposed():
  q, k, v, _ = _arrays((2, 3), (2, 2))
  text = str(jax.make_jaxpr(attention.local_region_attention)(q, k, v))
  assert "transpose" not in text
  assert "dot_general" not in text


def test_errors(unchecked):
  q, k, v, seen = _arrays((2, 3), (2, 2))
  attend = attention.local_region_attention
  with pytest.raises(ValueError, match="4 x 5, whose sides must be multiples"):
    attend(q, k[:, :, :5], v[:, :, :5])
  with pytest.raises(ValueError, match=r"q has shape .* batch, heads and dim"):
    attend(q[..., :4], k, v)
  with pytest.raises(ValueError, match=r"q has shape .* must be \[batch"):
    attend(q[0], k, v)
  with pytest.raises(ValueError, match="k is bfloat16 and q is float32"):
    attend(q, k.astype(jnp.bfloat16), v)
  with pytest.raises(ValueError, match="seen is an array of float32"):
    attend(q, k, v, seen=seen.astype(jnp.float32))
  with pytest.raises(ValueError, match="seen has shape"):
    attend(q, k, v, seen=seen[:, 1:])
  with pytest.raises(ValueError, match="weights has shape"):
    attend(q, k, v[:, 1:])
