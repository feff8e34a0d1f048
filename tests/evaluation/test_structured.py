"""Scores of records that were written, and scored, by hand."""

import pytest

from evaluation import structured

FIELDS = ("name", "born", "town")
GOLD = {"name": "Ada King", "born": "1815", "town": ""}
SOURCE = "Ada  King, a countess, was born in 1815; she died in 1852."
GOOD = '{"name": "Ada King", "born": "1815", "town": ""}'


def score(*predictions, **options):
  count = len(predictions)
  return structured.structured_scores(
    predictions, [GOLD] * count, [SOURCE] * count, FIELDS, **options
  )


def figures(scores):
  """SV, FC, SC, precision, recall, those of fuzzy matches, and HR."""
  names = "structure_validity field_completeness schema_compliance precision "
  names += "recall fuzzy_precision fuzzy_recall hallucination_rate"
  return [scores[name] for name in names.split()]


@pytest.mark.parametrize(
  ("prediction", "expected"),
  [
    (GOOD, [1, 1, 1, 1, 1, 1, 1, 0]),
    # Other spaces, letters and a fence are nothing.
    (
      '```json\n{"name": " ada  KING", "born": "1815",\n"town": ""}\n```',
      [1, 1, 1, 1, 1, 1, 1, 0],
    ),
    # Nulls stand for nothing.
    (
      '{"name": "Ada King<none>", "born": "1815<none><no", "town": "<none>"}',
      [1, 1, 1, 1, 1, 1, 1, 0],
    ),
    # A missing field, of which gold has nothing, and one that it fills.
    ('{"name": "Ada King", "born": "1815"}', [1, 1, 0, 1, 1, 1, 1, 0]),
    ('{"name": "Ada King", "town": ""}', [1, 0, 0, 1, 0.5, 1, 0.5, 0]),
    # An extra field, that the source has, and one that it has not.
    (
      '{"name": "Ada King", "born": "1815", "town": "", "died": "1852"}',
      [1, 1, 0, 2 / 3, 1, 2 / 3, 1, 0],
    ),
    (
      '{"name": "Ada King", "born": "1815", "town": "", "died": "1853"}',
      [1, 1, 0, 2 / 3, 1, 2 / 3, 1, 1 / 3],
    ),
    # A quote inside ends the string.
    ('{"name": "Ada "King", "born": "1815", "town": ""}', [0] * 8),
    # A wrong value that the source has, and a part of a right one.
    (
      '{"name": "countess", "born": "1815", "town": ""}',
      [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0],
    ),
    (
      '{"name": "King", "born": "1815", "town": ""}',
      [1, 1, 1, 0.5, 0.5, 1, 1, 0],
    ),
    # What gold does not have is made up.
    (
      '{"name": "Ada King", "born": "1815", "town": "Rome"}',
      [1, 1, 1, 2 / 3, 1, 2 / 3, 1, 1 / 3],
    ),
    # A name twice, a number, a list.
    (
      '{"name": "Bob", "name": "Ada King", "born": "1815", "town": ""}',
      [1, 1, 0, 1, 1, 1, 1, 0],
    ),
    (
      '{"name": "Ada King", "born": 1815, "town": ""}',
      [1, 0, 0, 1, 0.5, 1, 0.5, 0],
    ),
    ('["Ada King"]', [1, 0, 0, 0, 0, 0, 0, 0]),
    # Not JSON.
    ("", [0] * 8),
    (f"Here it is: {GOOD}", [0] * 8),
    ('{"name": NaN}', [0] * 8),
    ("[" * 100_000, [0] * 8),
  ],
)
def test_one_record(prediction, expected):
  scores = score(prediction)
  assert figures(scores) == pytest.approx(expected)
  for kind in ("", "fuzzy_"):
    both = scores[f"{kind}precision"], scores[f"{kind}recall"]
    mean = 2 * both[0] * both[1] / sum(both) if sum(both) else 0
    assert scores[f"{kind}f1"] == pytest.approx(mean)


def test_sums_are_over_all_fields_of_all_records():
  scores = score(GOOD, "nothing", '{"name": "Eve", "town": "Rome"}')
  # Four fields told, two of them right; six in gold.
  expected = [2 / 3, 1 / 3, 1 / 3, 0.5, 1 / 3, 0.5, 1 / 3, 0.5]
  assert figures(scores) == pytest.approx(expected)
  assert scores["f1"] == pytest.approx(0.4)


def test_which_fields_must_be_filled():
  one = '{"name": "Eve", "born": "", "town": ""}'
  for required, expected in (
    (None, 0),
    (("name",), 1),
    (("name", "town"), 0),
    ((), 1),
  ):
    scores = score(one, required=required)
    assert scores["field_completeness"] == expected


def test_words_that_two_values_share():
  assert structured.word_f1("Ada King", "king") == pytest.approx(2 / 3)
  assert structured.word_f1("a a b", "a b b") == pytest.approx(2 / 3)
  assert structured.word_f1("a", "b") == 0
  assert structured.word_f1("", "") == 0


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (((), (), (), FIELDS), "are 0, 0 and 0"),
    ((("{}",), (GOLD,), (), FIELDS), "are 1, 1 and 0"),
    ((("{}",), (GOLD,), ("",), ("name",)), "golds has born, town, which"),
  ],
)
def test_lists_that_do_not_fit(arguments, message):
  with pytest.raises(ValueError, match=message):
    structured.structured_scores(*arguments)


def test_required_fields_are_of_the_schema():
  with pytest.raises(ValueError, match="required has age, which"):
    score(GOOD, required=("age",))
