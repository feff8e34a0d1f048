"""Estimators against sums over all that sampling can give."""

import numpy as np
import pytest
from scipy import stats

from evaluation import pass_rates


def outcomes(p, wanted, cap, longest=None):
  """All counts that are possible, an item each, and their probabilities.

  Those of more than `longest` samples are left out.
  """
  last = min(cap, longest or cap)
  samples = np.arange(wanted, last + 1)
  stopped = stats.nbinom.pmf(samples - wanted, wanted, p)
  passes = np.full(len(samples), wanted)
  if last == cap:
    few = np.arange(min(wanted, cap + 1))
    samples = np.concatenate([samples, np.full(len(few), cap)])
    passes = np.concatenate([passes, few])
    stopped = np.concatenate([stopped, stats.binom.pmf(few, cap, p)])
  return pass_rates.Counts(passes, samples, wanted, cap), stopped


def expected(estimator, p, wanted, cap, longest=None):
  counts, probability = outcomes(p, wanted, cap, longest)
  np.testing.assert_allclose(probability.sum(), 1, atol=1e-9)
  return (estimator(counts) * probability).sum()


@pytest.mark.parametrize(
  ("p", "one", "two", "five"),
  [
    (0.1, 0.2558428, 0.1653683, 0.1211750),
    (0.01, 0.0465169, 0.0192623, 0.0124587),
    (0.001, 0.0069147, 0.0019882, 0.0012496),
  ],
)
def test_the_bias_of_likelihood_and_of_none(p, one, two, five):
  cap, longest = 10**9, int(60 / p)
  likelihood = pass_rates.maximum_likelihood
  for wanted, bias in ((1, one), (2, two), (5, five)):
    got = expected(likelihood, p, wanted, cap, longest)
    np.testing.assert_allclose(got, bias, atol=6e-8)
    if wanted > 1:
      got = expected(pass_rates.unbiased, p, wanted, cap, longest)
      np.testing.assert_allclose(got, p, rtol=1e-9)
  np.testing.assert_allclose(one, -p * np.log(p) / (1 - p), atol=6e-8)


@pytest.mark.parametrize(
  ("p", "wanted", "cap", "biased"),
  [
    (1e-3, 2, 1000, 0.00162053),
    (1e-4, 2, 1000, 0.00010938),
    (1e-5, 1, 100_000, 1.1294e-4),
  ],
)
def test_a_cap_biases_likelihood_and_not_ours(p, wanted, cap, biased):
  got = expected(pass_rates.maximum_likelihood, p, wanted, cap)
  np.testing.assert_allclose(got, biased, rtol=5e-5)
  if wanted > 1:
    got = expected(pass_rates.unbiased, p, wanted, cap)
    np.testing.assert_allclose(got, p, rtol=1e-9)


def test_published_counts():
  counts = pass_rates.Counts(np.array([2, 2]), np.array([7, 1000]), 2, 100_000)
  np.testing.assert_allclose(
    pass_rates.maximum_likelihood(counts), [0.285714, 0.002], atol=5e-7
  )
  np.testing.assert_allclose(
    pass_rates.unbiased(counts), [0.166667, 0.001001001], atol=5e-7
  )
  counts = pass_rates.Counts(np.array([5]), np.array([123_456]), 5, 10**6)
  np.testing.assert_allclose(
    pass_rates.maximum_likelihood(counts), 4.050026e-5, rtol=1e-6
  )
  np.testing.assert_allclose(
    pass_rates.unbiased(counts), 3.240047e-5, rtol=1e-6
  )


def test_published_intervals():
  for passes, low, high in ((2, 0.000242, 0.005564), (5, 0.001625, 0.010220)):
    counts = pass_rates.Counts(
      np.array([passes]), np.array([1000]), passes, 100_000
    )
    np.testing.assert_allclose(
      np.ravel(pass_rates.interval(counts)), [low, high], atol=6e-7
    )


@pytest.mark.parametrize("p", [0.003, 0.02, 0.3, 0.9])
@pytest.mark.parametrize(("wanted", "cap"), [(1, 40), (2, 40), (3, 2), (2, 1)])
def test_intervals_have_the_truth_as_often_as_they_say(p, wanted, cap):
  counts, probability = outcomes(p, wanted, cap)
  low, high = pass_rates.interval(counts, 0.8)
  missed = [probability[low > p].sum(), probability[high < p].sum()]
  assert max(missed) <= 0.1 + 1e-12
  # And they are not all from 0 to 1.
  assert (high - low).min() < 0.95


@pytest.mark.parametrize("p", [0.01, 0.2, 0.7])
@pytest.mark.parametrize(("wanted", "cap"), [(2, 9), (3, 9), (4, 3), (2, 2)])
def test_the_variance_of_the_estimate_is_estimated_without_bias(p, wanted, cap):
  square = lambda counts: pass_rates.unbiased(counts) ** 2
  true = expected(square, p, wanted, cap) - p**2
  got = expected(pass_rates.sampling_variance, p, wanted, cap)
  np.testing.assert_allclose(got, true, atol=1e-12)
  assert true > 0


def repetitions(p, times):
  """Counts of r = 2, again and again."""
  rng = np.random.default_rng(0)
  for _ in range(times):
    samples = 2 + rng.negative_binomial(2, p)
    passes = np.full(len(p), 2)
    yield pass_rates.Counts(passes, samples, 2, 10**9)


def test_the_mean_has_the_error_that_repetitions_show():
  p = np.tile([0.02, 0.1, 0.3, 0.001], 10)
  means = [pass_rates.mean(counts) for counts in repetitions(p, 2000)]
  estimates = np.array([each.estimate for each in means])
  error = np.array([each.error for each in means])
  assert abs(estimates.mean() - p.mean()) < 4 * estimates.std() / 2000**0.5
  np.testing.assert_allclose((error**2).mean(), estimates.var(), rtol=0.1)
  assert all(0 <= each.low <= each.estimate <= each.high <= 1 for each in means)
  covered = [each.low <= p.mean() <= each.high for each in means]
  assert 0.91 < np.mean(covered) < 0.98


def test_where_no_error_is_known_the_interval_is_that_of_items():
  counts = pass_rates.Counts(np.array([2, 0]), np.array([2, 50]), 2, 50)
  mean = pass_rates.mean(counts)
  assert mean[:2] == (0.5, 0)
  low, high = pass_rates.interval(counts)
  np.testing.assert_allclose(mean[2:], [low.mean(), high.mean()])
  assert mean.low < 0.2 < 0.5 < mean.high


def test_of_nothing_that_passed_there_is_an_upper_bound():
  counts = pass_rates.Counts(np.zeros(3, int), np.full(3, 50), 2, 50)
  mean = pass_rates.mean(counts)
  assert mean[:3] == (0, 0, 0)
  # Of 150 samples none, with a probability of 0.025.
  np.testing.assert_allclose((1 - mean.high) ** 150, 0.025, rtol=1e-9)


@pytest.mark.parametrize(
  ("passes", "samples", "wanted", "cap", "message"),
  [
    ([1], [5], 2, 9, "item 0 has 1 passes in 5 samples"),
    ([2, 3], [5, 9], 2, 9, "item 1 has 3 passes"),
    ([2], [10], 2, 9, "item 0 has 2 passes in 10 samples"),
    ([2], [1], 2, 9, "item 0 has 2 passes in 1 samples"),
    ([], [], 2, 9, r"passes has shape \(0,\)"),
    ([0], [0], 2, 0, "cap is 0"),
    ([1], [5], 1, 9, "wanted is 1, for which"),
  ],
)
def test_counts_that_cannot_be(passes, samples, wanted, cap, message):
  counts = pass_rates.Counts(np.array(passes), np.array(samples), wanted, cap)
  with pytest.raises(ValueError, match=message):
    pass_rates.unbiased(counts)


def test_options_out_of_range():
  counts = pass_rates.Counts(np.array([0]), np.array([1]), 2, 1)
  with pytest.raises(ValueError, match="cap is 1, and one sample"):
    pass_rates.mean(counts)
  with pytest.raises(ValueError, match="confidence=1 is not above 0"):
    pass_rates.interval(counts, 1)
