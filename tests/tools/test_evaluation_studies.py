"""What the studies of PassUntil and L-CiteEval make of counts and answers."""

import numpy as np
import pytest

from input_pipeline.sequences import cited_facts
from tools.interpret_studies import l_citeeval, pass_until

SIZES = np.array([1e3, 3e3, 1e4, 3e4, 1e5])


def sampled(size, p, passes=4000):
  """What a model with pass probability `p` gives, all as expected."""
  kept = lambda wanted: [[wanted] * 3, [round(wanted / p)] * 3, wanted, 10**9]
  return {
    "parameters": float(size),
    "greedy": 0.0,
    "exact": [p] * 3,
    "two": kept(passes),
    "one": kept(1),
    "fixed": [[0] * 3, [100] * 3, 101, 100],
  }


def test_the_largest_is_predicted_by_the_others():
  p = np.exp(-60 * SIZES**-0.25)
  models = [sampled(*pair) for pair in zip(SIZES, p, strict=True)]
  for kind in pass_until.KINDS:
    row = pass_until.prediction(models, kind)
    assert row["exact"] == pytest.approx(p[-1])
    assert row["predicted"] == pytest.approx(p[-1], rel=0.02), kind
    if kind != "items":
      assert row["low"] <= row["predicted"] <= row["high"]
      assert abs(row["quadratic"]) < 0.01
  # The largest itself says nothing of its prediction.
  models[-1] = sampled(SIZES[-1], 0.9)
  again = pass_until.prediction(models, "unbiased")
  assert again["predicted"] == pytest.approx(p[-1], rel=0.02)
  assert again["exact"] == pytest.approx(0.9)


def test_a_model_that_never_passed_leaves_its_prediction_out():
  p = np.exp(-60 * SIZES**-0.25)
  models = [sampled(*pair) for pair in zip(SIZES, p, strict=True)]
  models[0]["two"] = [[0] * 3, [50] * 3, 2, 50]
  row = pass_until.prediction(models, "unbiased")
  assert set(row) == {"parameters", "exact"}
  assert "predicted" in pass_until.prediction(models, "exact")
  figures = pass_until.figures(models[0])
  assert figures["unbiased"] == figures["low"] == 0 < figures["high"]


@pytest.fixture
def source():
  return cited_facts.CitedFacts(keys=40, values=9)


@pytest.mark.parametrize("condition", l_citeeval.CONDITIONS)
def test_cases_are_what_their_condition_says(source, condition):
  rng = np.random.default_rng(0)
  places = set()
  for _ in range(60):
    case = l_citeeval.case(source, rng, condition, 6)
    assert len(set(case.keys)) == len(case.values) == 6
    constant = [k for k in case.keys if k < 20 and k != case.asked]
    for key in constant:
      assert case.values[case.keys.index(key)] == source.constants[key]
    assert (case.asked < 20) == (condition != "fresh")
    if condition == "removed":
      assert case.passages == []
      assert case.right == case.known == source.constants[case.asked]
      continue
    (number,) = case.passages
    places.add(number)
    assert case.right == case.values[number - 1]
    if condition == "fresh":
      assert case.known is None
    else:
      assert case.known == source.constants[case.asked]
      assert (case.right == case.known) == (condition == "constant")
  assert places == (set() if condition == "removed" else set(range(1, 7)))


CASES = [
  l_citeeval.Case([3, 5, 7], [1, 2, 2], 5, 2, 4),
  l_citeeval.Case([5, 3, 7], [2, 1, 2], 5, 2, 4),
]


def test_answers_are_judged_by_what_they_say_and_cite():
  judged = lambda *texts: l_citeeval.judged(CASES, texts)
  assert judged("v2 [2]", "v2 [1]") == {
    "accuracy": 1,
    "by_heart": 0,
    "recall": 1,
    "precision": 1,
    "f1": 1,
    "citations": 1,
  }
  # Right values, of which a passage on another key does not tell.
  got = judged("v2 [3]", "v2 [1][2]")
  assert (got["accuracy"], got["recall"]) == (1, 0.5)
  assert (got["precision"], got["citations"]) == (0.25, 1.5)
  got = judged("v4 [2]", "")
  assert (got["accuracy"], got["by_heart"], got["recall"]) == (0, 0.5, 0)


def test_controls_cite_what_they_say():
  rng = np.random.default_rng(0)
  case = CASES[0]
  assert l_citeeval.recited("all", rng, case, "v2 [3]") == " [1][2][3]"
  assert l_citeeval.recited("best match", rng, case, "v2 [3]") == " [2]"
  drawn = {l_citeeval.recited("random", rng, case, "v2") for _ in range(40)}
  assert drawn == {" [1]", " [2]", " [3]"}


def test_attention_to_what_is_cited():
  cases = CASES * 20
  right = np.array([case.passages[0] for case in cases])
  rng = np.random.default_rng(0)
  # Two heads, the second of which looks at the value of the right passage,
  # though less than both look at the question.
  weights = rng.uniform(0, 0.1, (40, 2, 2, 14))
  weights[np.arange(40), 1, 1, 4 * right - 1] = 0.4
  weights[..., -2] = 0.5
  texts = [f"v2 [{n}]" for n in right]
  got = l_citeeval.attended(weights, cases, texts, rng)
  assert got["agreement"] == 1
  assert got["correlation"] == got["of_best_head"] == pytest.approx(1)
  assert abs(got["shuffled"]) < 0.5
  # Where the value is written it looks anywhere.
  assert abs(got["at_value"]) < 0.5
  again = l_citeeval.attended(weights[:, :, ::-1], cases, texts, rng)
  assert again["at_value"] == pytest.approx(1)
  assert abs(again["of_best_head"]) < 0.5
  removed = [case._replace(keys=[3, 6, 7]) for case in cases]
  got = l_citeeval.attended(weights, removed, texts, rng)
  assert "agreement" not in got
