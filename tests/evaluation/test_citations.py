"""Citation scores: the sheet's numbers, a set-based oracle, any text."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evaluation import citations

PASSAGES = ["a", "b", "c", "a b"]


def entails(premise, claim):
  return set(claim.split()) <= set(premise.split())


def score(*sentences, **options):
  return citations.citation_scores(sentences, PASSAGES, entails, **options)


def test_the_numbers_of_the_sheet():
  got = score("a [1]", "a b [1][2]", "a [1][3]", "c", "a b [4][1]")
  assert got.citations == 7
  np.testing.assert_allclose(got[:3], [0.8, 5 / 7, 0.754717], atol=5e-7)
  # The fourth is not looked at, but must be in range.
  assert score("c [1][2][4][3]") == (0, 0, 0, 3)
  assert score("a [1][2][4][10]") == (0, 0, 0, 0)
  # Both say it.
  assert score("a [1][4]") == (1, 1, 1, 2)


def test_one_true_citation_a_sentence_is_perfect_and_no_answer_nothing():
  assert score("a [1]", "b [2]", "a b [4]") == (1, 1, 1, 3)
  assert score() == (0, 0, 0, 0)
  assert score(published=True) is None
  assert citations.mean([None, score("a [1]"), score("b [1]")])[:3] == (
    0.5,
    0.5,
    0.5,
  )
  with pytest.raises(ValueError, match="no mean of 1 scores"):
    citations.mean([None])


def test_what_theirs_does_otherwise():
  # "[0]" is the last passage, which says a and b.
  assert score("b [0]") == (0, 0, 0, 0)
  assert score("b [0]", published=True) == (1, 1, 1, 1)
  assert score("a [1][1]") == (1, 1, 1, 1)
  assert score("a [1][1]", published=True).citations == 2
  assert score("c [1][1][2][3]") == (1, 1 / 3, 0.5, 3)
  assert score("c [1][1][2][3]", published=True) == (0, 0, 0, 3)


def test_a_limit_below_one():
  with pytest.raises(ValueError, match="limit=0 is not 1"):
    score("a [1]", limit=0)
  assert score("a [3][1]", limit=1) == (0, 0, 0, 1)


def by_sets(facts, sentences):
  """The definition with sets of facts and no text, written anew."""
  supported, good, total = 0, 0, 0
  for claim, cited in sentences:
    cited = list(dict.fromkeys(cited))
    if not cited or min(cited) < 1 or max(cited) > len(facts):
      continue
    kept = [facts[n - 1] for n in cited[:3]]
    total += len(kept)
    if not claim <= set().union(*kept):
      continue
    supported += 1
    for i, passage in enumerate(kept):
      rest = set().union(*kept[:i], *kept[i + 1 :])
      alone = len(kept) == 1 or claim <= passage
      good += alone or not claim <= rest
  recall = supported / len(sentences)
  precision = good / total if total else 0
  both = recall + precision
  f1 = 2 * recall * precision / both if both else 0
  return recall, precision, f1, total


def test_random_answers_have_the_scores_of_sets():
  rng = np.random.default_rng(0)
  letters = np.array(list("abcd"))
  seen = []
  for _ in range(400):
    facts = [set(letters[rng.random(4) < 0.4]) for _ in range(5)]
    sentences = [
      (
        set(rng.choice(letters, rng.integers(1, 4)).tolist()),
        rng.integers(0 if rng.random() < 0.1 else 1, 6, rng.integers(5)),
      )
      for _ in range(rng.integers(1, 6))
    ]
    written = [
      " ".join(sorted(claim)) + "".join(f" [{n}]" for n in cited)
      for claim, cited in sentences
    ]
    got = citations.citation_scores(
      written, [" ".join(sorted(each)) for each in facts], entails
    )
    expected = by_sets(facts, [(c, n.tolist()) for c, n in sentences])
    np.testing.assert_allclose(got, expected)
    seen.append(got)
  mean = citations.mean(seen)
  assert mean.f1 <= (mean.precision + mean.recall) / 2
  assert {0.0, 1.0} < {each.precision for each in seen}


TEXT = st.text(st.sampled_from("[]0123456789 ,a\n\u0661\u00b2"), max_size=30)


@settings(max_examples=300)
@given(TEXT | st.text(max_size=30))
@example("[[1]2] [" + "9" * 5000 + "]")
@example("[\u0661] [\u00b2]")
@example("[007]")
def test_any_text_has_citations_that_can_be_removed(text):
  found = citations.parse_citations(text)
  assert all(0 <= n <= 10**18 for n in found)
  # ASCII digits behind a bracket, and nothing else.
  assert len(found) == len(re.findall(r"\[[0-9]", text))
  shorter = citations.remove_citations(text)
  assert citations.parse_citations(shorter) == []
  assert len(shorter) <= len(text)
  if not found:
    assert shorter == text
  for published in (False, True):
    got = citations.citation_scores(
      [text], PASSAGES, entails, published=published
    )
    assert 0 <= min(got[:3]) <= max(got[:3]) <= 1
    assert got.citations <= min(3, len(found))


@given(st.lists(st.integers(0, 10**17), max_size=6))
def test_what_is_written_is_read(numbers):
  text = "It is so" + "".join(f" [{n}]" for n in numbers) + ". And more"
  assert citations.parse_citations(text) == numbers
  assert citations.remove_citations(text) == "It is so. And more"


def test_one_bracket_is_one_citation():
  assert citations.parse_citations("x [1, 2] [03][see 4]") == [1, 3]
  assert citations.remove_citations("x [1, 2], y[3].") == "x, y."
  assert citations.remove_citations("[12 and on") == " and on"


def test_passages_are_joined_and_answers_split():
  asked = []

  def spy(premise, claim):
    asked.append((premise, claim))
    return True

  passages = [
    citations.passage_text("text", "Name"),
    citations.passage_text("more"),
  ]
  got = citations.answer_scores(
    "One [1][2]. ; Two [2].", passages, spy, lambda text: text.split(";")
  )
  assert got == (1, 1, 1, 3)
  whole = "Title: Name\nPassage: text\nPassage: more"
  assert asked[0] == (whole, "One. ")
  assert asked[-1] == ("Passage: more", " Two.")
  assert citations.answer_scores(" ;", passages, spy, str.split) == (
    0,
    0,
    0,
    0,
  )


def test_needles():
  passages = [f"hay {n}" for n in range(1, 9)]
  passages[4] = passages[6] = "hay needle"
  # Of passages that have it the first is right.
  got = citations.needle_scores("At [3][5]\n[7]", passages, "needle")
  np.testing.assert_allclose(got, [1, 0.5, 2 / 3, 2], atol=5e-7)
  assert citations.needle_scores("[7]\n[5]", passages, "needle") == (0, 0, 0, 1)
  assert citations.needle_scores("", passages, "needle") == (0, 0, 0, 0)
  twice = "[5][5]"
  assert citations.needle_scores(twice, passages, "needle").precision == 1
  theirs = citations.needle_scores(twice, passages, "needle", published=True)
  assert theirs.precision == 0.5
  with pytest.raises(ValueError, match="needle='pin' is in none of 8"):
    citations.needle_scores("", passages, "pin")


def test_needed_passages_of_all_small_answers():
  # Whatever three distinct passages are cited, at most all are needed.
  for cited in itertools.permutations(range(1, 5), 3):
    got = score("a b" + "".join(f"[{n}]" for n in cited))
    truth = by_sets(
      [{"a"}, {"b"}, {"c"}, {"a", "b"}], [({"a", "b"}, list(cited))]
    )
    np.testing.assert_allclose(got, truth)
