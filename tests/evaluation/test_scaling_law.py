"""The task law: fact sheet's numbers, simulated ladders, items one by one."""

import numpy as np
import pytest

from evaluation import pass_rates, scaling_law

SIZES = np.array([0.036, 0.109, 0.241, 0.499, 0.892, 1.54])
LARGEST = 2.45
DOUBLING = np.array([1.0, 2, 4, 8, 16])


def rates(sizes):
  return np.exp(-3.5 * sizes**-0.25)


def test_a_law_is_found_and_goes_on():
  given = rates(SIZES)
  np.testing.assert_allclose(
    given,
    [0.000324, 0.002262, 0.006770, 0.015540, 0.027284, 0.043202],
    atol=6e-7,
  )
  law = scaling_law.fit(SIZES, given)
  np.testing.assert_allclose([law.log_c, law.alpha], [np.log(3.5), 0.25])
  predicted = scaling_law.predict(law, LARGEST)
  np.testing.assert_allclose(predicted, [0.0609598] * 3, atol=5e-8)
  np.testing.assert_allclose(
    scaling_law.transformed(0.05990), 1.034990, atol=5e-7
  )
  np.testing.assert_allclose(
    scaling_law.pass_rate(scaling_law.transformed(given)), given
  )


def test_weights_and_covariance_are_those_of_errors():
  rng = np.random.default_rng(0)
  given = rates(SIZES)
  errors = given * rng.uniform(0.02, 0.3, len(SIZES))
  slope = -errors / (given * np.log(given))
  runs = []
  for _ in range(300):
    # Noise in F, of the size that the errors have there.
    f = scaling_law.transformed(given) + slope * rng.normal(size=len(SIZES))
    # Weights of the same errors of F, whatever the noisy rate is.
    noisy = scaling_law.pass_rate(f)
    law = scaling_law.fit(SIZES, noisy, -slope * noisy * np.log(noisy))
    predicted = scaling_law.predict(law, LARGEST, 0.9)
    runs.append((law, predicted))
  found = np.array([[law.log_c, law.alpha] for law, _ in runs])
  np.testing.assert_allclose(np.cov(found.T), runs[0][0].covariance, rtol=0.25)
  truth = rates(LARGEST)
  covered = np.mean([p.low <= truth <= p.high for _, p in runs])
  assert 0.84 < covered < 0.95
  # Without errors the residuals say how far the points are off.
  assert np.isnan(scaling_law.fit(SIZES[:2], given[:2]).covariance).all()
  free = scaling_law.fit(SIZES, scaling_law.pass_rate(f)).covariance
  logs = np.log(SIZES)
  _, expected = np.polyfit(-logs, f, 1, cov=True)
  np.testing.assert_allclose(free, expected[::-1, ::-1], rtol=1e-6)


def test_a_ladder_predicts_the_next_with_ours_and_not_with_likelihood():
  """The sheet's: 20 items, cap 1e5, and its slope of -.32 for r = 1."""
  rng = np.random.default_rng(1)
  predicted, slopes = {}, {}
  for name, wanted in (
    ("one", 1),
    ("two", 2),
    ("five", 5),
    ("ours", 2),
    ("ours of five", 5),
  ):
    found, alphas = [], []
    for _ in range(400):
      samples = wanted + rng.negative_binomial(
        wanted, rates(SIZES)[:, None], (len(SIZES), 20)
      )
      counts = [
        pass_rates.Counts(np.full(20, wanted), row, wanted, 100_000)
        for row in samples
      ]
      estimator = (
        pass_rates.unbiased
        if name.startswith("ours")
        else pass_rates.maximum_likelihood
      )
      means = np.array([estimator(each).mean() for each in counts])
      law = scaling_law.fit(SIZES, means)
      found.append(scaling_law.predict(law, LARGEST).estimate)
      alphas.append(law.alpha)
    predicted[name], slopes[name] = np.array(found), -np.mean(alphas)
  np.testing.assert_allclose(predicted["one"].mean(), 0.187, atol=0.006)
  np.testing.assert_allclose(predicted["two"].mean(), 0.106, atol=0.004)
  np.testing.assert_allclose(predicted["ours"].mean(), 0.061, atol=0.003)
  np.testing.assert_allclose(predicted["ours"].std(), 0.012, atol=0.003)
  np.testing.assert_allclose(predicted["five"].mean(), 0.074, atol=0.002)
  five = predicted["ours of five"]
  np.testing.assert_allclose(five.mean(), 0.061, atol=0.001)
  np.testing.assert_allclose(five.std(), 0.005, atol=0.002)
  np.testing.assert_allclose(slopes["one"], -0.32, atol=0.01)


def test_series_are_convex_and_the_best_of_circuits_is_concave():
  c, alpha = np.array([2.0, 8]), np.array([0.1, 0.8])
  series = scaling_law.transformed(scaling_law.in_series(DOUBLING, c, alpha))
  np.testing.assert_allclose(
    series, [2.302585, 1.865762, 1.477075, 1.144293, 0.869730], atol=5e-7
  )
  assert (np.diff(series, 2) > 0).all()
  best = scaling_law.transformed(scaling_law.best_of(DOUBLING, c, alpha))
  np.testing.assert_allclose(
    best, [0.693147, 0.623832, 0.554518, 0.415888, -0.138629], atol=6e-7
  )
  assert (np.diff(best, 2) <= 1e-12).all()
  for rule, sign in ((scaling_law.in_series, 1), (scaling_law.best_of, -1)):
    shape = scaling_law.curve_shape(DOUBLING, rule(DOUBLING, c, alpha))
    assert sign * shape.quadratic > 2 * shape.error
  line = scaling_law.curve_shape(DOUBLING, rates(DOUBLING))
  assert abs(line.quadratic) < 1e-9


def test_items_that_differ_bend_the_mean_and_not_their_own_curves():
  mean = np.mean([np.exp(-c * DOUBLING**-0.3) for c in (2.0, 12.0)], axis=0)
  np.testing.assert_allclose(
    np.diff(scaling_law.transformed(mean), 2),
    [0.0086, 0.0083, 0.0067],
    atol=5e-5,
  )
  counts = fixed(
    np.stack([np.exp(-c * DOUBLING**-0.3) for c in (2.0, 12.0)], axis=1)
  )
  log_c, alpha = scaling_law.fit_items(DOUBLING, counts)
  np.testing.assert_allclose(np.exp(log_c), [2, 12], rtol=0.01)
  np.testing.assert_allclose(alpha, [0.3, 0.3], atol=0.01)
  np.testing.assert_allclose(
    scaling_law.predict_items(log_c, alpha, 64.0),
    np.exp(-np.array([2, 12]) * 64**-0.3),
    rtol=0.02,
  )


def fixed(p, samples=10**7):
  """Counts of a fixed number of samples, as many passes as expected."""
  return [
    pass_rates.Counts(
      np.rint(row * samples).astype(int),
      np.full(len(row), samples),
      samples + 1,
      samples,
    )
    for row in p
  ]


def test_an_item_without_passes_in_small_models_counts():
  p = np.stack([np.exp(-9 * DOUBLING**-0.4), np.zeros(5)], axis=1)
  rare = fixed(p, samples=400)
  assert [each.passes[0] for each in rare[:2]] == [0, 0]
  log_c, alpha = scaling_law.fit_items(DOUBLING, rare)
  # Two models without a pass, of 400 samples: the likelihood uses them.
  predicted = scaling_law.predict_items(log_c, alpha, 32.0)
  np.testing.assert_allclose(predicted[0], np.exp(-9 * 32**-0.4), rtol=0.15)
  assert np.isnan(predicted[1])
  # A model that always passes has no failures to tell of.
  certain = fixed(np.array([[0.5], [1.0]]), samples=100)
  log_c, alpha = scaling_law.fit_items(DOUBLING[:2], certain)
  assert scaling_law.predict_items(log_c, alpha, 2.0)[0] > 0.97


def test_losses_stand_in_for_passes():
  losses = np.array([2.0, 3, 5, 9])
  got = scaling_law.rates_from_losses(
    losses, np.where(losses < 5, np.exp(-losses), 0)
  )
  np.testing.assert_allclose(got, np.exp(-losses))
  # Losses of the mean over ten tokens.
  got = scaling_law.rates_from_losses(
    losses / 10, np.where(losses > 2, 0.5 * np.exp(-losses), 0)
  )
  np.testing.assert_allclose(got, 0.5 * np.exp(-losses))
  got = scaling_law.rates_from_losses([1.0, 2, -50], [0.1, 0.01, 0])
  assert got[2] == 1


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: scaling_law.fit([1, 1], [0.1, 0.2]), "fewer than 2 that differ"),
    (lambda: scaling_law.fit([1, 2], [0.0, 0.2]), "no log"),
    (lambda: scaling_law.fit([1, 2], [0.1, 1.0]), "no log"),
    (lambda: scaling_law.fit([1, 2], [0.1]), "as many"),
    (lambda: scaling_law.fit([-1, 2], [0.1, 0.2]), "above 0"),
    (lambda: scaling_law.fit([1, 2], [0.1, 0.2], [0, 1]), "errors="),
    (lambda: scaling_law.curve_shape([1, 2], [0.1, 0.2]), "fewer than 3"),
    (lambda: scaling_law.fit_items([1, 2], fixed([[0.1]])), "do not fit"),
    (lambda: scaling_law.rates_from_losses([1, 2], [0, 0.1]), "two that"),
  ],
)
def test_what_does_not_fit(call, message):
  with pytest.raises(ValueError, match=message):
    call()
