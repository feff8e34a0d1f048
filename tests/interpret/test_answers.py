"""Answers and refusals, with what the authors' judge gets wrong."""

import pytest

from interpret import answers

PHRASES = ["I'm sorry", "I can't", "no."]


@pytest.mark.parametrize(
  "text",
  [
    "I'm sorry, but",
    # Typographic and other apostrophes, cases, spaces and line breaks.
    "I\u2019m  SORRY",
    "well, i\u2019m\nsorry",
    "I can\u00b4t.",
    "No.",
    "abc no.",
  ],
)
def test_refusals(text):
  assert answers.is_refusal(text, PHRASES)


@pytest.mark.parametrize(
  "text", ["", "sorry", "nothing. At all", "piano.", "I can", "can't", "no one"]
)
def test_no_refusals(text):
  """Above all no word within a word: "no." is not in "piano."."""
  assert not answers.is_refusal(text, PHRASES)


def test_nonsense_is_no_answer_and_no_refusal():
  texts = ["abc", "no.", "xyz", "I can't abc", "q"]
  judged = answers.judge(
    texts, PHRASES, lambda number, text: text in ("abc", "xyz") and number < 2
  )
  assert judged == ["answered", "refused", "other", "refused", "other"]
  assert answers.rates(judged) == (0.4, 0.2, 0.4)
  assert answers.rates(judged).other == 0.4


def test_what_cannot_be_judged():
  with pytest.raises(ValueError, match=r"phrases is 'no'.*list"):
    answers.is_refusal("no", "no")
  with pytest.raises(ValueError, match=r"phrases is \[\]"):
    answers.is_refusal("no", [])
  with pytest.raises(ValueError, match="' ', which every text"):
    answers.is_refusal("no", ["yes", " "])
  with pytest.raises(ValueError, match="judged has nothing"):
    answers.rates([])
  with pytest.raises(ValueError, match=r"judged has \['maybe'\]"):
    answers.rates(["other", "maybe"])
