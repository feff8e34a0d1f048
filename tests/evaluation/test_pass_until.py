"""The driver against counting by hand, and a model against teacher forcing."""

import functools

import jax
import numpy as np
import pytest

from evaluation import answer_loss, pass_rates, pass_until
from tests.models import language as small


@functools.cache
def draw(item, number):
  return np.random.default_rng((item, number)).random()


P = (0.9, 0.3, 0.02, 0.0, 0.15)


def by_hand(wanted, cap):
  passes, samples = [], []
  for item, p in enumerate(P):
    passed = drawn = 0
    while passed < wanted and drawn < cap:
      passed += draw(item, drawn) < p
      drawn += 1
    passes.append(passed)
    samples.append(drawn)
  return passes, samples


@pytest.mark.parametrize(
  ("wanted", "cap"), [(2, 100), (1, 7), (3, 2), (41, 40)]
)
def test_counts_are_those_by_hand_whatever_the_batch(wanted, cap):
  expected = by_hand(wanted, cap)
  for batch in (1, 3, 8, 64):
    asked = []

    def sample(items, numbers, asked=asked):
      asked.append(len(items))
      pairs = zip(items.tolist(), numbers.tolist(), strict=True)
      return [draw(*pair) for pair in pairs]

    counts = pass_until.sample_until(
      sample,
      lambda item, text: text < P[item],
      len(P),
      wanted=wanted,
      cap=cap,
      batch=batch,
    )
    assert set(asked) == {batch}
    assert counts.passes.tolist() == expected[0]
    assert counts.samples.tolist() == expected[1]
    # They are counts that estimators take.
    assert pass_rates.interval(counts)[0].shape == (len(P),)


def test_what_does_not_fit_is_an_error():
  sample = lambda items, numbers: [0]
  for options, message in (
    ({"wanted": 0}, "wanted=0 is not"),
    ({"cap": 0.5}, "cap=0.5 is not"),
    ({"batch": 2}, "sample gave 1 samples, but batch=2"),
  ):
    with pytest.raises(ValueError, match=message):
      pass_until.sample_until(sample, lambda *_: True, 3, **options)
  model = small.model()
  for options, message in (
    ({"temperature": 0.0, "cap": 9}, "temperature=0.0 gives one"),
    ({"cap": 2**30}, "cap=1073741824 need 3221225472 .* cap=715827882 would"),
  ):
    with pytest.raises(ValueError, match=message):
      pass_until.sampler(model, {}, [[1]] * 3, list, max_tokens=1, **options)


QUESTIONS = [[3, 1], [5, 2, 7], [4]]
ANSWERS = [[2, 8], [1], [9]]


@pytest.fixture(scope="module")
def trained():
  model = small.model(tied_head=False)
  return model, small.variables(model)


def test_log_probabilities_are_products_of_the_tokens(trained):
  model, variables = trained
  got = answer_loss.log_probabilities(model, variables, QUESTIONS, ANSWERS)
  apply = jax.jit(functools.partial(model.apply, train=False))
  for question, answer, found in zip(QUESTIONS, ANSWERS, got, strict=True):
    # Alone, without padding.
    logits = np.asarray(apply(variables, np.array([question + answer])))[0]
    expected = 0.0
    for place, token in enumerate(answer, len(question)):
      before = logits[place - 1]
      expected += before[token] - np.log(np.exp(before).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
  for bad, message in (
    (([[1]], [[1], [2]]), "1 questions and 2 answers"),
    (([[1]], [[]]), r"answers\[0\] is empty"),
    (([[1]], [[13]]), "token 13"),
  ):
    with pytest.raises(ValueError, match=message):
      answer_loss.log_probabilities(model, variables, *bad)


def test_a_model_passes_as_often_as_teacher_forcing_says(trained):
  model, variables = trained
  questions, answers = QUESTIONS * 8, [[2], [1], [9]] * 8
  exact = np.exp(
    answer_loss.log_probabilities(model, variables, questions, answers)
  )
  assert exact.min() > 5e-4
  counts = pass_until.pass_until(
    model,
    variables,
    questions,
    lambda item, tokens: tokens == answers[item],
    decode=list,
    max_tokens=1,
    cap=3000,
    batch=240,
    cache_length=8,
  )
  assert counts.samples.max() > 20
  mean = pass_rates.mean(counts)
  assert abs(mean.estimate - exact.mean()) < 3 * mean.error
  low, high = pass_rates.interval(counts, 0.99)
  assert ((low <= exact) & (exact <= high)).mean() > 0.9


def test_a_sample_is_of_its_number_and_not_of_its_neighbours(trained):
  model, variables = trained
  sample = pass_until.sampler(
    model,
    variables,
    # Items with the same prompt are items of their own.
    [[3, 1], [3, 1], [3, 1]],
    tuple,
    max_tokens=6,
    cap=50,
    seed=3,
    cache_length=16,
  )
  items, numbers = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 7, 7, 49])
  first = sample(items, numbers)
  assert len(set(first)) == 6
  order = np.array([4, 2, 0, 5, 1, 3])
  assert sample(items[order], numbers[order]) == [first[i] for i in order]
