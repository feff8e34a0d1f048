"""Stars: JSON in any text, and the sheet's numbers."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evaluation import counting_stars


def written(stars, passages):
  return json.dumps({"little_penguin": stars, "passage_id": passages})


def test_passages_count_once():
  got = counting_stars.star_scores(written([], [3, 5, 5, 7]), [3, 5, 9])
  np.testing.assert_allclose(got, [2 / 3, 2 / 3, 2 / 3, 3])
  assert counting_stars.star_scores(written([], []), [3]) == (0, 0, 0, 0)
  assert counting_stars.star_scores("I do not know", [3]) == (0, 0, 0, 0)
  with pytest.raises(ValueError, match="is empty, so that there is no recall"):
    counting_stars.star_scores("", [])


def test_one_right_number_again_and_again_is_not_all_right():
  stars = [4, 9, 9, 21]
  for given_, expected in (
    ([4, 4, 4, 4], 0.25),
    ([9, 21, 4, 9], 1.0),
    ([9], 0.25),
    ([4, 9, 9, 21, 5, 6, 7, 8], 0.5),
    ([], 0.0),
  ):
    text = "Sure: " + written(given_, [1]) + " as asked."
    assert counting_stars.star_accuracy(text, stars) == expected
  assert counting_stars.star_accuracy("{", stars) == 0
  with pytest.raises(ValueError, match="stars="):
    counting_stars.star_accuracy("", [])


def test_what_is_not_an_integer_is_left_out():
  text = written([1, True, "2", 3.0, None, [4]], {"a": 1})
  assert counting_stars.parse(text) == ([1], [])
  assert counting_stars.parse('{"passage_id": [1]} {}') == ([], [1])


@settings(max_examples=200)
@given(
  st.text(max_size=30)
  | st.text(st.sampled_from('{}[]",:1eE-."'), max_size=30).map("{".__add__)
)
@example('{"passage_id": ' + "[" * 100_000)
@example('{"passage_id": [' + "9" * 5000 + "]}")
@example('{"passage_id": [NaN, Infinity]}')
def test_any_text_can_be_read(text):
  answer = counting_stars.parse(text)
  if answer is not None:
    assert all(type(n) is int for part in answer for n in part)
  scores = counting_stars.star_scores(text, [1])
  assert 0 <= min(scores[:3]) <= max(scores[:3]) <= 1
