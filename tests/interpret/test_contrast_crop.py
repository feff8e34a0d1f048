"""CARVE's maps: the sheet's golden grid, an argmin, traps that hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from interpret import contrast_crop
from models import taps
from tests.interpret import test_token_boost_edit

GENERAL = np.array(
  [
    [0.20, 0.05, 0.05, 0.02],
    [0.05, 0.02, 0.02, 0.02],
    [0.05, 0.02, 0.02, 0.02],
    [0.20, 0.05, 0.02, 0.04],
  ]
)
SEMANTIC = np.full((4, 4), 0.5)
SEMANTIC[1:3, 2:4] = 4.0
SEMANTIC[3, 3] = 2.0
QUESTION = GENERAL * SEMANTIC


def test_the_golden_grid():
  maps = jnp.asarray(QUESTION), jnp.asarray(GENERAL)
  assert maps[0].sum() == pytest.approx(0.765, abs=1e-6)
  bare = jax.jit(contrast_crop.contrast)(*maps)
  np.testing.assert_allclose(bare, SEMANTIC, rtol=1e-5)
  offset = contrast_crop.contrast(*maps, 0.05)
  found = [offset[0, 0], offset[1, 2], offset[3, 3], offset[0, 3]]
  expected = [0.4, 1.142857, 0.888889, 0.142857]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_entropy():
  entropy = contrast_crop.attention_entropy
  for attention, expected in ((QUESTION, 2.498297), (GENERAL, 2.363819)):
    flat = jnp.asarray(attention).reshape(1, 16)
    assert entropy(flat) == pytest.approx(expected, abs=1e-5)
  one_hot, even = jnp.eye(16)[:1], jnp.full((1, 16), 0.3)
  assert entropy(one_hot) == 0.0
  assert entropy(even) == pytest.approx(2.772589, abs=1e-5)
  # Of two layers it is the mean.
  both = entropy(jnp.concatenate([one_hot, even]))
  assert both == pytest.approx(2.772589 / 2, abs=1e-5)


def test_the_contrast_is_the_minimum_of_the_objective():
  """Equation of section 4, minimised by search."""
  for place in np.ndindex(4, 4):
    a_q, a_g = QUESTION[place], GENERAL[place]
    objective = lambda a, q=a_q, g=a_g: (a * g - q) ** 2 + 0.05 * a**2 * g
    best = scipy.optimize.minimize_scalar(objective, tol=1e-12).x
    closed = contrast_crop.contrast(jnp.array([a_q]), jnp.array([a_g]), 0.05)
    assert closed[0] == pytest.approx(best, rel=1e-5)


def test_a_common_factor_cancels_without_an_offset_only():
  maps = jnp.asarray(QUESTION), jnp.asarray(GENERAL)
  tripled = contrast_crop.contrast(maps[0] * 3, maps[1] * 3)
  np.testing.assert_allclose(tripled, SEMANTIC, rtol=1e-5)
  small = contrast_crop.contrast(*maps, 0.05)
  large = contrast_crop.contrast(maps[0] * 3, maps[1] * 3, 0.05)
  assert np.abs(large - small).min() > 0.02
  # That of the map's own median scales along.
  scaled = [
    contrast_crop.contrast(
      maps[0].ravel() * factor,
      maps[1].ravel() * factor,
      contrast_crop.median_offset(maps[1].ravel() * factor),
    )
    for factor in (1, 3)
  ]
  np.testing.assert_allclose(*scaled, rtol=1e-5)


def test_a_token_that_nobody_sees_explodes_without_an_offset():
  """Two tokens, the second with hardly any attention in either map."""
  question, general = jnp.array([0.3, 2e-6]), jnp.array([0.1, 1e-8])
  assert jnp.argmax(contrast_crop.contrast(question, general, 1e-8)) == 1
  offset = contrast_crop.median_offset(general)
  assert jnp.argmax(contrast_crop.contrast(question, general, offset)) == 0
  none = contrast_crop.contrast(question, jnp.array([0.1, 0.0]))
  np.testing.assert_allclose(none, [3.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients(dtype):
  """Of A_Q / (A_G + offset), also beside a token that has none."""
  question = jnp.asarray([0.3, 0.2, 0.1], dtype)
  general = jnp.asarray([0.2, 0.0, 0.4], dtype)
  total = lambda q, g: contrast_crop.contrast(q, g).sum()
  by_q, by_g = jax.grad(total, (0, 1))(question, general)
  g = np.asarray(general, np.float64)
  q = np.asarray(question, np.float64)
  tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
  np.testing.assert_allclose(
    by_q.astype(jnp.float32), [1 / g[0], 0, 1 / g[2]], rtol=tolerance
  )
  expected = [-q[0] / g[0] ** 2, 0, -q[2] / g[2] ** 2]
  np.testing.assert_allclose(by_g.astype(jnp.float32), expected, rtol=tolerance)


def test_image_attention():
  rng = np.random.default_rng(0)
  weights = rng.random((3, 2, 5, 9)).astype(np.float32)
  keys = jnp.arange(1, 8)[None]
  found = contrast_crop.image_attention(jnp.asarray(weights), keys)
  np.testing.assert_allclose(found, weights.mean(1)[:, -1, 1:8], rtol=1e-6)
  queries = jnp.array([4, 0, 2])
  found = contrast_crop.image_attention(
    jnp.asarray(weights), keys + jnp.array([[0], [1], [-1]]), queries
  )
  expected = [
    weights.mean(1)[b, q, start : start + 7]
    for b, (q, start) in enumerate(((4, 1), (0, 2), (2, 0)))
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("starts", [(0, 0), (1, 4)])
def test_maps_of_a_model(starts):
  model, variables = test_token_boost_edit.vision_language()
  inputs = test_token_boost_edit.TOKENS, test_token_boost_edit.IMAGES
  inputs += (jnp.array(starts),) if any(starts) else ()
  queries = jnp.array([7, 10])

  @jax.jit
  def call(variables):
    maps = contrast_crop.image_maps(model, variables, inputs, (2, 0), queries)
    return maps, taps.read(model, variables, *inputs, names=["layer_*_weights"])

  found, (_, weights) = call(variables)
  assert found.shape == (2, 2, 6)
  for place, layer in enumerate((2, 0)):
    map_ = np.asarray(weights[f"layer_{layer}/mixer/attention_weights"])
    for row, query in enumerate((7, 10)):
      np.testing.assert_allclose(
        found[row, place],
        map_[row, :, query, starts[row] : starts[row] + 6].mean(0),
        rtol=1e-4,
      )


def test_fusing():
  rng = np.random.default_rng(1)
  contrasts = rng.random((2, 3, 4, 7)).astype(np.float32)
  found = jax.jit(contrast_crop.fuse)(jnp.asarray(contrasts))
  expected = np.zeros((2, 7))
  for step in range(3):
    for layer in range(4):
      expected += (step + 1) * contrasts[:, step, layer]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  last = contrast_crop.fuse(jnp.asarray(contrasts), jnp.array([0.0, 0.0, 1.0]))
  np.testing.assert_allclose(last, contrasts[:, 2].sum(1), rtol=1e-5)


def test_shares_change_the_weights_of_maps_alone():
  """Raw mass lets a map that looks at the image more count for more."""
  question, general = (
    jnp.asarray(QUESTION.ravel()),
    jnp.asarray(GENERAL.ravel()),
  )
  raw = contrast_crop.contrast(question, general)
  shares = contrast_crop.contrast(
    contrast_crop.normalized(question), contrast_crop.normalized(general)
  )
  np.testing.assert_allclose(raw / shares, (raw / shares)[0], rtol=1e-5)
  assert (raw / shares)[0] == pytest.approx(0.765 / GENERAL.sum(), rel=1e-5)
  np.testing.assert_array_equal(
    contrast_crop.normalized(jnp.zeros((1, 3))), np.zeros((1, 3))
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: contrast_crop.image_attention(
        jnp.ones((2, 3, 4)), jnp.ones((1, 1), int)
      ),
      r"weights have shape \(2, 3, 4\)",
    ),
    (
      lambda: contrast_crop.image_attention(
        jnp.ones((2, 1, 1, 4)), jnp.ones((3, 2), int)
      ),
      r"image has shape \(3, 2\).*must be \[2 or 1, image tokens\]",
    ),
    (
      lambda: contrast_crop.image_maps(None, {}, (jnp.ones((1, 3), int),), [0]),
      "inputs has 1 arrays and no image",
    ),
    (
      lambda: contrast_crop.contrast(jnp.ones(3), jnp.ones(4)),
      r"question has shape \(3,\) and general \(4,\)",
    ),
    (
      lambda: contrast_crop.fuse(jnp.ones((2, 3))),
      r"contrasts have shape \(2, 3\)",
    ),
    (
      lambda: contrast_crop.fuse(jnp.ones((2, 3, 4)), jnp.ones(3)),
      r"weights have shape \(3,\); for 2 steps",
    ),
  ],
)
def test_what_does_not_fit_is_told(call, message):
  with pytest.raises(ValueError, match=message):
    call()
