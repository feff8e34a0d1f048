"""PAINT's boost: golden numbers, what it depends on, weights with their lse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from interpret import token_boost

# Of a text token, two local ones, a summary one and another of the image.
LOGITS = jnp.asarray([2.0, -2.0, 1.0, -1.0, 0.5]).reshape(1, 1, 1, 5)
LOCAL = jnp.array([[0, 1, 1, 0, 0]], bool)
SUMMARY = jnp.array([[0, 0, 0, 1, 0]], bool)
IMAGE = jnp.array([[0, 1, 1, 1, 1]], bool)
GAINS = token_boost.token_gains(LOCAL, SUMMARY, 0.7, 0.4)


def boosted(logits, gains=GAINS):
  return jax.nn.softmax(token_boost.boost_logits(logits, gains))


def mass(weights):
  return float(token_boost.image_mass(weights, IMAGE)[0, 0, 0])


def test_golden_numbers():
  base = jax.nn.softmax(LOGITS)
  expected = [0.602732, 0.011039, 0.221733, 0.030008, 0.134488]
  np.testing.assert_allclose(base[0, 0, 0], expected, atol=1e-6)
  assert mass(base) == pytest.approx(0.397268, abs=1e-6)
  logits = jax.jit(token_boost.boost_logits)(LOGITS, GAINS)
  np.testing.assert_allclose(logits[0, 0, 0], [2, -0.6, 1.7, -0.6, 0.5])
  weights = boosted(LOGITS)
  expected = [0.473374, 0.035159, 0.350684, 0.035159, 0.105624]
  np.testing.assert_allclose(weights[0, 0, 0], expected, atol=1e-6)
  assert mass(weights) == pytest.approx(0.526626, abs=1e-6)


def test_pai_is_all_image_tokens_with_one_gain():
  weights = boosted(LOGITS, token_boost.pai_gains(IMAGE))
  assert weights[0, 0, 0, 0] == pytest.approx(0.493850, abs=1e-6)


def test_it_depends_on_the_offset_that_softmax_does_not_see():
  """As published: the same weights before, others after."""
  for offset, expected in ((2.0, 0.768512), (-2.0, 0.588552)):
    same = jax.nn.softmax(LOGITS + offset)
    np.testing.assert_allclose(same, jax.nn.softmax(LOGITS), rtol=1e-5)
    assert mass(boosted(LOGITS + offset)) == pytest.approx(expected, abs=1e-6)
  # So weights without their log-sum-exp are not enough.
  log_weights = jnp.log(jax.nn.softmax(LOGITS))
  assert mass(boosted(log_weights)) == pytest.approx(0.656445, abs=1e-6)


def random_logits(shape=(2, 3, 5, 7), seed=0):
  rng = np.random.default_rng(seed)
  logits = jnp.asarray(rng.normal(size=shape) * 3, jnp.float32)
  hidden = np.zeros(shape, bool)
  hidden[..., 4, 5:] = hidden[1, :, :, 0] = True
  gains = jnp.asarray(rng.random((shape[0], shape[3])), jnp.float32)
  return jnp.where(hidden, -jnp.inf, logits), gains


def test_from_weights_and_their_log_sum_exp():
  logits, gains = random_logits()
  heads = jnp.array([1.0, 0.5, 0.0])
  found = jax.jit(token_boost.boost_weights)(
    jax.nn.softmax(logits), jax.nn.logsumexp(logits, axis=-1), gains, heads
  )
  expected = jax.nn.softmax(token_boost.boost_logits(logits, gains, heads))
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # The third head's factor is zero, the first one's one.
  np.testing.assert_allclose(
    found[:, 2], jax.nn.softmax(logits)[:, 2], atol=1e-6
  )
  whole = jax.nn.softmax(token_boost.boost_logits(logits, gains))
  np.testing.assert_allclose(found[:, 0], whole[:, 0], atol=1e-6)
  assert np.abs(found[:, 1] - whole[:, 1]).max() > 0.01


def test_against_numpy():
  logits, gains = random_logits(seed=1)
  found = token_boost.boost_logits(logits, gains)
  expected = np.array(logits, np.float64)
  for b, h, q, k in np.ndindex(expected.shape):
    if np.isfinite(expected[b, h, q, k]):
      z = expected[b, h, q, k]
      factor = 1 + gains[b, k] if z > 0 else 1 - gains[b, k]
      expected[b, h, q, k] = z * factor
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_no_gain_is_the_identity_and_more_never_takes_away():
  logits, gains = random_logits()
  none = token_boost.boost_logits(logits, gains * 0)
  np.testing.assert_array_equal(none, logits)
  chosen = jnp.array([[1, 1, 0, 0, 0, 1, 0]] * 2, bool)
  masses = [
    token_boost.image_mass(
      jax.nn.softmax(
        token_boost.boost_logits(logits, token_boost.pai_gains(chosen, gain))
      ),
      chosen,
    )
    for gain in (0.0, 0.3, 0.9, 2.0)
  ]
  assert (np.diff(masses, axis=0) >= -1e-6).all()
  assert np.diff(masses, axis=0).max() > 0.1


def test_a_strongly_rejected_token_is_raised_most():
  """exp(0.7 x 8) = 270 of either sign."""
  logits = jnp.array([0.0, -8.0, 8.0]).reshape(1, 1, 1, 3)
  gains = jnp.array([[0.0, 0.7, 0.7]])
  raised = token_boost.boost_logits(logits, gains) - logits
  np.testing.assert_allclose(
    jnp.exp(raised)[0, 0, 0], [1, 270.4, 270.4], rtol=1e-3
  )


def test_rows():
  logits, gains = random_logits()
  raised = token_boost.boost_logits(logits, gains)
  last = token_boost.boost_rows(logits, raised)
  np.testing.assert_array_equal(last[:, :, :-1], logits[:, :, :-1])
  np.testing.assert_array_equal(last[:, :, -1], raised[:, :, -1])
  rows = jnp.array([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], bool)
  some = token_boost.boost_rows(logits, raised, rows)
  np.testing.assert_array_equal(some[0, :, 3], raised[0, :, 3])
  np.testing.assert_array_equal(some[1, :, 3], logits[1, :, 3])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients(dtype):
  """1 + g sign z of seen keys, and numbers where keys are hidden."""
  logits, gains = random_logits()
  logits = logits.astype(dtype)
  total = lambda z, g: jnp.where(
    jnp.isfinite(z), token_boost.boost_logits(z, g), 0.0
  ).sum()
  by_logits, by_gains = jax.grad(total, (0, 1))(logits, gains)
  seen = jnp.isfinite(logits)
  z = jnp.where(seen, logits, 0).astype(jnp.float32)
  expected = seen * (1 + gains[:, None, None] * jnp.sign(z))
  tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
  np.testing.assert_allclose(
    by_logits.astype(jnp.float32), expected, rtol=tolerance
  )
  np.testing.assert_allclose(by_gains, jnp.abs(z).sum((1, 2)), rtol=1e-4)
  of_weights = jax.grad(
    lambda w: token_boost.boost_weights(w, jnp.ones((2, 3, 5)), gains)[
      ..., 1
    ].sum()
  )(jax.nn.softmax(logits))
  assert jnp.isfinite(of_weights).all()
  assert jnp.abs(of_weights).max() > 0.01


def test_a_row_that_sees_nothing_stays_so():
  weights = jnp.zeros((1, 1, 2, 3)).at[0, 0, 1].set(1 / 3)
  lse = jnp.array([[[-jnp.inf, 1.0]]])
  found = token_boost.boost_weights(weights, lse, jnp.ones((1, 3)))
  np.testing.assert_allclose(found[0, 0], [[0] * 3, [1 / 3] * 3], rtol=1e-6)


def test_a_constant_of_matched_image_mass():
  logits, _ = random_logits()
  image = jnp.array([[1, 1, 1, 0, 0, 0, 0]], bool)
  wanted = jnp.linspace(0.05, 0.95, 30).reshape(2, 3, 5)
  found = token_boost.with_image_mass(logits, image, wanted)
  weights = jax.nn.softmax(found)
  np.testing.assert_allclose(
    token_boost.image_mass(weights, image), wanted, rtol=1e-4
  )
  # Text logits are as they were, and image tokens keep their shares.
  np.testing.assert_array_equal(found[..., 3:], logits[..., 3:])
  before = jax.nn.softmax(logits[0, :, :, :3])
  np.testing.assert_allclose(
    jax.nn.softmax(found[0, :, :, :3]), before, rtol=1e-4
  )
  alone = token_boost.with_image_mass(logits, jnp.ones((1, 7), bool), wanted)
  np.testing.assert_array_equal(alone, logits)


def test_guidance():
  image, text = (
    jnp.log(jnp.array(p)) for p in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3])
  )
  guided = jnp.exp(token_boost.guide(image, text))
  np.testing.assert_allclose(guided, [0.534566, 0.278082, 0.187352], atol=1e-6)
  # Scale 1 is the model with the image, of logits at any offset.
  same = token_boost.guide(image + 3.0, text - 5.0, 1.0)
  np.testing.assert_allclose(jnp.exp(same), [0.5, 0.3, 0.2], rtol=1e-5)
  cut = jnp.exp(token_boost.guide(image, text, least=0.5))
  assert cut[2] == 0.0
  np.testing.assert_allclose(cut.sum(), 1.0, rtol=1e-6)
  assert cut[0] / cut[1] == pytest.approx(0.534566 / 0.278082, rel=1e-5)


def test_gains_of_heads():
  found = token_boost.head_gains(jnp.array([0.2, 0.1, 0.6]))
  np.testing.assert_allclose(found, [2 / 3, 1 / 3, 1.0], rtol=1e-6)
  np.testing.assert_array_equal(token_boost.head_gains(jnp.zeros(2)), [1, 1])


def test_a_token_that_is_both_has_the_gain_of_a_summary():
  both = jnp.ones((1, 2), bool)
  gains = token_boost.token_gains(both, jnp.array([[1, 0]], bool), 0.7, 0.4)
  np.testing.assert_allclose(gains, [[0.4, 0.7]], rtol=1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: token_boost.token_gains(LOCAL, SUMMARY[:, :4]),
      r"local has shape \(1, 5\) and summary \(1, 4\)",
    ),
    (
      lambda: token_boost.token_gains(LOCAL, SUMMARY, -0.1),
      "local_gain is -0.1",
    ),
    (
      lambda: token_boost.boost_logits(LOGITS, GAINS[:, :4]),
      r"gains have shape \(1, 4\)",
    ),
    (
      lambda: token_boost.boost_logits(LOGITS, GAINS, jnp.ones(2)),
      r"head_gains have shape \(2,\)",
    ),
    (
      lambda: token_boost.boost_weights(LOGITS, jnp.ones((1, 1)), GAINS),
      r"log_sum_exp has shape \(1, 1\)",
    ),
    (
      lambda: token_boost.guide(jnp.ones(3), jnp.ones(3), least=2.0),
      "least is 2.0",
    ),
  ],
)
def test_what_does_not_fit_is_told(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_numpys_softmax_agrees():
  """The oracle of weights, once, without jax."""
  z = np.array([2.0, -0.6, 1.7, -0.6, 0.5])
  np.testing.assert_allclose(
    boosted(LOGITS)[0, 0, 0], scipy.special.softmax(z), rtol=1e-5
  )
