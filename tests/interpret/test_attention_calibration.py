"""Later sinks give to other keys: a golden matrix, a loop, traps, a search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import attention_calibration as calibration

TRIANGLE = (
  (1.0,),
  (0.7, 0.3),
  (0.4, 0.1, 0.5),
  (0.3, 0.1, 0.5, 0.1),
  (0.35, 0.05, 0.4, 0.1, 0.1),
  (0.30, 0.05, 0.40, 0.05, 0.10, 0.10),
)
THRESHOLD, KEEP = 0.2, 0.4
BATCH, HEADS, LENGTH = 2, 3, 12
FIRST = np.arange(6) == 0


def _matrix():
  """The sheet's map, [1, 1, 6, 6]."""
  matrix = np.zeros((6, 6), np.float32)
  for i, row in enumerate(TRIANGLE):
    matrix[i, : len(row)] = row
  return jnp.asarray(matrix)[None, None]


def _visible(length=6):
  return calibration.causal(jnp.ones((1, length), bool))


def _sinks(least_observers=1, threshold=THRESHOLD):
  sums, observers = calibration.column_sums(_matrix(), _visible())
  return calibration.find_sinks(
    sums, observers, FIRST[None, None], threshold, least_observers
  )


def _random(seed=0, batch=BATCH, length=LENGTH):
  """Causal maps with sinks of their own, [batch, HEADS, length, length]."""
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((batch, HEADS, length, length))
  logits += 2 * rng.standard_normal((batch, HEADS, 1, length))
  logits = np.where(np.tril(np.ones((length, length), bool)), logits, -np.inf)
  return np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))


def test_the_golden_map():
  scores = calibration.sink_scores(_matrix(), _visible())[0, 0]
  expected = [0.508333333, 0.12, 0.45, 0.083333333, 0.1, 0.1]
  np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
  sinks = _sinks()
  assert np.flatnonzero(sinks[0, 0]).tolist() == [2]
  out = calibration.calibrate(_matrix(), sinks, KEEP)[0, 0]
  for i, row in enumerate(
    [
      (1.0,),
      (0.7, 0.3),
      (0.64, 0.16, 0.20),
      (0.48, 0.16, 0.20, 0.16),
      # Of the rule, not of the sheet.
      (0.49, 0.07, 0.16, 0.14, 0.14),
      (0.42, 0.07, 0.16, 0.07, 0.14, 0.14),
    ]
  ):
    np.testing.assert_allclose(out[i, : i + 1], row, rtol=0, atol=1e-6)
  assert not np.triu(out, 1).any()


def test_receivers_without_the_first_key():
  out = calibration.calibrate(_matrix(), _sinks(), KEEP, spared=FIRST[None])
  expected = [0.30, 0.09, 0.16, 0.09, 0.18, 0.18]
  np.testing.assert_allclose(out[0, 0, 5], expected, rtol=0, atol=1e-6)


def test_the_first_key_is_spared_by_name():
  """The released code spares the first candidate, here a real sink."""
  matrix = np.array(_matrix())
  # Nobody but itself looks at the first key, which is then no candidate.
  moved = matrix[0, 0, 1:, 0] * 0.9
  matrix[0, 0, 1:, 0] -= moved
  matrix[0, 0, 1:, 1] += moved
  scores = calibration.sink_scores(matrix, _visible())[0, 0]
  assert scores[0] < 0.3 < scores[1]
  sums, observers = calibration.column_sums(matrix, _visible())
  sinks = calibration.find_sinks(sums, observers, FIRST[None, None], 0.3, 1)
  assert np.flatnonzero(sinks[0, 0]).tolist() == [1, 2]


def test_late_keys_have_few_observers():
  matrix = np.array(_matrix())
  matrix[0, 0, 5] = [0.1, 0.05, 0.1, 0.05, 0.1, 0.6]
  sums, observers = calibration.column_sums(matrix, _visible())
  np.testing.assert_array_equal(observers[0, 0], [6, 5, 4, 3, 2, 1])
  find = lambda least: np.flatnonzero(
    calibration.find_sinks(sums, observers, FIRST[None, None], THRESHOLD, least)
  )
  assert find(1).tolist() == [2, 5]
  assert find(4).tolist() == [2]
  assert find(5).tolist() == []


def test_two_thresholds_agree_at_fifty_tokens():
  alpha = calibration.PUBLISHED_ALPHA
  constant = calibration.PUBLISHED_THRESHOLDS["classification"]
  assert alpha / 50 == constant
  by_length = jnp.full((1, 1, 1), alpha / 6)
  assert not _sinks(threshold=by_length).any()


def test_a_row_alone_with_sums_that_go_on():
  """A step of decoding; the released function made of it a row of 1.628."""
  sums = observers = 0.0
  steps = []
  for i in range(6):
    row = _matrix()[:, :, i : i + 1]
    new = calibration.column_sums(row, _visible()[:, :, i : i + 1])
    sums, observers = sums + new[0], observers + new[1]
    sinks = calibration.find_sinks(
      sums, observers, FIRST[None, None], THRESHOLD, 1
    )
    steps.append(calibration.calibrate(row, sinks, KEEP)[0, 0, 0])
  expected = [0.42, 0.07, 0.16, 0.07, 0.14, 0.14]
  np.testing.assert_allclose(steps[-1], expected, rtol=0, atol=1e-6)
  whole = calibration.sink_scores(_matrix(), _visible())
  np.testing.assert_allclose(sums / observers, whole, rtol=1e-6)


def test_a_loop_over_rows():
  weights = _random()
  spared = np.arange(LENGTH) == 0
  sums, observers = calibration.column_sums(weights, _visible(LENGTH))
  sinks = calibration.find_sinks(sums, observers, spared[None, None], 0.12, 3)
  expected = weights.astype(np.float64)
  for b, h, i in np.ndindex(weights.shape[:3]):
    own = []
    for k in range(1, LENGTH - 2):
      mean = sum(weights[b, h, j, k] for j in range(k, LENGTH)) / (LENGTH - k)
      if mean > 0.12:
        own.append(k)
    assert np.flatnonzero(sinks[b, h]).tolist() == own
    freed = sum(0.6 * weights[b, h, i, k] for k in own)
    rest = sum(weights[b, h, i, k] for k in range(LENGTH) if k not in own)
    for k in range(LENGTH):
      part = freed * weights[b, h, i, k] / rest
      kept = 0.4 * weights[b, h, i, k]
      expected[b, h, i, k] = kept if k in own else weights[b, h, i, k] + part
  out = calibration.calibrate(weights, sinks, KEEP)
  np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
  assert 2 <= sinks.sum() < sinks.size / 2


def test_properties():
  weights = _random(1)
  sums, observers = calibration.column_sums(weights, _visible(LENGTH))
  first = (np.arange(LENGTH) == 0)[None, None]
  sinks = calibration.find_sinks(sums, observers, first, 0.1, 2)
  np.testing.assert_array_equal(
    calibration.calibrate(weights, sinks, 1.0), weights
  )
  nothing = jnp.zeros_like(sinks)
  np.testing.assert_array_equal(
    calibration.calibrate(weights, nothing, 0.0), weights
  )
  out = np.asarray(calibration.calibrate(weights, sinks, 0.0))
  np.testing.assert_allclose(out.sum(-1), 1.0, atol=1e-6)
  assert not out[~np.tril(np.ones(weights.shape, bool))].any()
  # One factor for all that are no sinks of a row.
  ratio = np.where(weights > 1e-4, out / np.maximum(weights, 1e-4), np.nan)
  for b, h, i in np.ndindex(weights.shape[:3]):
    own = ratio[b, h, i][~np.asarray(sinks)[b, h]]
    own = own[~np.isnan(own)]
    np.testing.assert_allclose(own, own[0], rtol=1e-3)
  # Where all that is seen is a sink there is nobody to give to.
  every = jnp.ones_like(sinks)
  np.testing.assert_array_equal(
    calibration.calibrate(weights, every, 0.5), weights
  )
  # Heads that were not chosen keep their bits.
  heads = jnp.array([False, True, False])
  some = calibration.calibrate(weights, sinks, 0.0, heads=heads)
  np.testing.assert_array_equal(some[:, 1], out[:, 1])
  np.testing.assert_array_equal(some[:, ::2], weights[:, ::2])


def test_padding_on_the_left_changes_nothing():
  alone, pad = _random(2, batch=1, length=9), 4
  padded = np.random.default_rng(3).random((1, HEADS, 9 + pad, 9 + pad))
  padded = padded.astype(np.float32)
  padded[..., pad:, :] = 0
  padded[..., pad:, pad:] = alone
  valid = jnp.arange(9 + pad)[None] >= pad
  positions = np.arange(9 + pad) - pad

  def run(weights, valid, first):
    sums, observers = calibration.column_sums(
      weights, calibration.causal(valid)
    )
    sinks = calibration.find_sinks(sums, observers, first[None, None], 0.1, 2)
    return calibration.calibrate(weights, sinks, KEEP)

  expected = run(alone, jnp.ones((1, 9), bool), np.arange(9) == 0)
  out = run(padded, valid, positions == 0)
  np.testing.assert_allclose(out[..., pad:, pad:], expected, atol=1e-6)
  assert np.abs(expected - alone).max() > 0.05


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients(dtype):
  weights = jnp.asarray(_random(4), dtype)
  first = (np.arange(LENGTH) == 0)[None, None]
  sums, observers = calibration.column_sums(weights, _visible(LENGTH))
  sinks = calibration.find_sinks(sums, observers, first, 0.1, 2)
  factor = np.random.default_rng(5).standard_normal(weights.shape)

  def measure(weights):
    out = calibration.calibrate(weights, sinks, KEEP)
    assert out.dtype == weights.dtype
    return (out.astype(jnp.float32) * factor).sum()

  gradient = jax.jit(jax.grad(measure))(weights)
  assert gradient.dtype == dtype
  exact = np.asarray(weights, np.float64)
  along = np.random.default_rng(6).standard_normal(weights.shape) * exact
  mask = np.asarray(sinks)[:, :, None]

  def rule(weights):
    freed = 0.6 * np.where(mask, weights, 0).sum(-1, keepdims=True)
    rest = np.where(mask, 0, weights).sum(-1, keepdims=True)
    return np.where(mask, KEEP * weights, weights * (1 + freed / rest))

  step = 1e-5
  difference = rule(exact + step * along) - rule(exact - step * along)
  expected = (difference * factor).sum() / (2 * step)
  actual = (np.asarray(gradient, np.float64) * along).sum()
  tolerance = {jnp.float32: 1e-4, jnp.bfloat16: 2e-2}[dtype]
  np.testing.assert_allclose(actual, expected, rtol=tolerance)


def test_heads_are_tried_one_by_one():
  truth = np.array([[9, 9, 9], [9, 9, 9], [0.1, -0.2, 0.0], [0.0, 0.3, -0.1]])
  asked = []

  def evaluate(table):
    asked.append(table.sum())
    return 0.5 + truth[table].sum()

  found = calibration.select_heads(evaluate, 4, 3)
  assert asked == [0] + [1] * 6
  assert found.baseline == 0.5
  assert np.isnan(found.gains[:2]).all()
  np.testing.assert_allclose(found.gains[2:], truth[2:], atol=1e-12)
  assert np.argwhere(found.chosen).tolist() == [[2, 0], [3, 1]]
  whole = calibration.select_heads(evaluate, 4, 3, first_layer=0)
  assert whole.chosen[:2].all()
  with pytest.raises(ValueError, match=r"first_layer is 2; of 2 layers"):
    calibration.select_heads(evaluate, 2, 3)


def test_random_heads_are_of_those_that_are_tried():
  rng = np.random.default_rng(0)
  drawn = [calibration.random_heads(rng, 3, 4, 5) for _ in range(40)]
  assert {table.sum() for table in drawn} == {3}
  union = np.any(drawn, axis=0)
  assert not union[:2].any()
  assert union[2:].all()
  with pytest.raises(ValueError, match=r"count is 11.*10 heads"):
    calibration.random_heads(rng, 11, 4, 5)


def test_errors():
  weights, sinks = _matrix(), _sinks()
  with pytest.raises(ValueError, match=r"keep is -0\.1"):
    calibration.calibrate(weights, sinks, -0.1)
  with pytest.raises(ValueError, match=r"sinks has shape \(1, 1, 1, 5\)"):
    calibration.calibrate(weights, sinks[..., 1:], KEEP)
