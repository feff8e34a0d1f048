"""Words in common, by hand and by another way of finding subsequences."""

import functools

import numpy as np
import pytest

from evaluation import answer_quality


def test_questions_by_hand():
  got = answer_quality.question_overlap(
    "The red, RED fox! [3]\nignored", ["a red fox"]
  )
  np.testing.assert_allclose(got, [2 / 3, 1, 0.8])
  # The best precision is of one reference, the best recall of another.
  got = answer_quality.question_overlap("x y", ["x y z w", "x"])
  np.testing.assert_allclose(got, [1, 1, 2 / 3])
  assert answer_quality.question_overlap("[1]", ["x"]) == (0, 0, 0)
  assert answer_quality.question_overlap("the", ["the"]) == (0, 0, 0)
  with pytest.raises(ValueError, match=r"references=\[\] is empty"):
    answer_quality.question_overlap("x", [])


def test_rouge_by_hand():
  reference = "police killed the gunman"
  # Lin, "ROUGE" (2004), section 3: both share three words, in other orders.
  first = answer_quality.rouge_l("police kill the gunman", reference)
  second = answer_quality.rouge_l("the gunman kill police", reference)
  np.testing.assert_allclose([first.f1, second.f1], [0.75, 0.5])
  same = answer_quality.rouge_1("The gunman: kill POLICE.", reference)
  np.testing.assert_allclose(same, [0.75] * 3)
  got = answer_quality.rouge_1("a a a b", "a a c")
  np.testing.assert_allclose(got, [0.5, 2 / 3, 4 / 7])
  assert answer_quality.rouge_l("", "x") == (0, 0, 0)


def test_the_longest_common_subsequence_of_random_words():
  rng = np.random.default_rng(0)
  for _ in range(100):
    first, second = (
      rng.integers(0, 4, rng.integers(0, 12)).tolist() for _ in range(2)
    )

    @functools.cache
    def longest(i, j, first=first, second=second):
      if not i or not j:
        return 0
      if first[i - 1] == second[j - 1]:
        return longest(i - 1, j - 1) + 1
      return max(longest(i - 1, j), longest(i, j - 1))

    expected = longest(len(first), len(second))
    assert answer_quality.longest_common(first, second) == expected
