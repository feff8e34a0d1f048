"""What is masked or padded acts on nothing in any kernel.

Each case makes NaN or infinities where a mask, or the padding to whole tiles,
hides them, and compares values and gradients with the same call without.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import masks, scores, windows
from attention.dot_product import dot_product_attention

KERNELS = ("tpu_interpret", "gpu_interpret")


def _draw(*shape, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), dtype)


def _results(function, *arrays):
  """Returns the output and the gradients of a sum of cosines of it."""
  out, pullback = jax.vjp(function, *arrays)
  return out, *pullback(jnp.cos(jnp.arange(out.size)).reshape(out.shape))


def _assert_close(actual, expected):
  for x, y in zip(actual, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_modification_without_a_number_where_it_is_hidden(implementation):
  """Padded operands are zeros, and this divides by them."""
  q, k, v = (_draw(1, n, 1, 16, seed=n) for n in (5, 7, 7))
  # The last key is hidden, and its divisor is zero as well.
  rows, columns = jnp.arange(1.0, 6.0), jnp.arange(6.0, -1.0, -1.0)
  seen = jnp.broadcast_to(columns > 0.0, (1, 1, 5, 7))

  def divided(score, batch, head, i, j, row, column):
    return score / (row * column)

  def kernel(q, k, v, rows, columns):
    return dot_product_attention(
      q,
      k,
      v,
      score_mods=scores.function(divided, {"q": rows, "k": columns}),
      mask=masks.dense(seen),
      implementation=implementation,
    )

  arrays = (q, k, v, rows, columns)
  out, *gradients = jax.jit(lambda *x: _results(kernel, *x))(*arrays)
  q, k, v, rows, columns = (np.asarray(x, np.float64) for x in arrays)
  weights = np.exp(
    q[0, :, 0] @ k[0, :-1, 0].T / 4 / rows[:, None] / columns[:-1]
  )
  weights /= weights.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(out[0, :, 0], weights @ v[0, :-1, 0], 2e-5, 2e-5)
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))
  # The last key and value, and the divisor of the last key.
  for gradient in (*(x[0, -1] for x in gradients[1:3]), gradients[4][-1]):
    assert not np.any(gradient)


@pytest.mark.parametrize("implementation", KERNELS)
def test_integers_of_a_modification_have_no_gradient(implementation):
  q, k, v = (_draw(1, n, 1, 16, seed=n) for n in (5, 7, 7))
  row, column, both = (
    jnp.arange(np.prod(shape)).reshape(shape) % 3
    for shape in ((5,), (7,), (5, 7))
  )

  def shifted(score, batch, head, i, j, row, column, both):
    return score + 0.5 * (row == column) + 0.25 * both

  def attend(implementation, *arrays):
    return dot_product_attention(
      *arrays,
      score_mods=scores.function(shifted, {"q": row, "k": column, "qk": both}),
      implementation=implementation,
    )

  run = lambda name: jax.jit(
    lambda *x: _results(lambda *y: attend(name, *y), *x)
  )(q, k, v)
  _assert_close(run(implementation), run("xla"))


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_window_bias_that_hides_all_keys_of_a_query(implementation):
  q, k, v = (_draw(1, 2, 2, 1, 16, seed=seed) for seed in range(3))
  bias = _draw(1, 4, 4).at[0, 1].set(-jnp.inf).at[0, 2, 3].set(-jnp.inf)

  attend = lambda *x: windows.block_attention(
    *x[:3], window_size=2, bias=x[3], implementation=implementation
  )
  out, *gradients = jax.jit(lambda *x: _results(attend, *x))(q, k, v, bias)
  # Query 1 of the one window is at row 0, column 1 of it.
  for nothing in (out[0, 0, 1], gradients[0][0, 0, 1], gradients[3][0, 1]):
    assert not np.any(nothing)
  assert np.any(out[0], axis=(2, 3)).tolist() == [[True, False], [True, True]]
  for gradient in gradients:
    assert np.all(np.isfinite(gradient))


def test_factors_beside_a_scale_of_zero():
  q, k, v = (_draw(1, n, 1, 16, seed=n) for n in (5, 7, 7))
  a, b = _draw(1, 5, 1, 2), _draw(1, 7, 1, 2)
  run = lambda name: dot_product_attention(
    q,
    k,
    v,
    scale=0.0,
    score_mods=scores.factored_bias(a, b),
    implementation=name,
  )
  _assert_close([run("tpu_interpret")], [run("xla")])
