"""What is attended to while citing: made up maps, and those of a model."""

import jax
import numpy as np
import pytest

from evaluation import citation_attention
from tests.models import language as small

# A sink, passages of two keys each, and the question.
PASSAGES = np.array([[0, 1, 1, 2, 2, 3, 3, 0]] * 4)


def maps(places):
  """Of two heads the second looks at `places` more than the first anywhere."""
  rng = np.random.default_rng(0)
  weights = rng.uniform(0, 0.2, (4, 2, len(places[0]), 8))
  for row, own in enumerate(places):
    for query, place in enumerate(own):
      weights[row, 1, query, place] = 0.5
  return weights


def test_the_passage_of_the_largest_weight_of_all_heads():
  weights = maps([[1, 4], [5, 6], [2, 3], [4, 1]])
  found = citation_attention.attended_passages(weights, PASSAGES)
  assert found.tolist() == [[1, 2], [3, 3], [1, 2], [2, 1]]
  # The largest weight, not the largest sum over heads.
  two = np.array([[[[0.35, 0.0]], [[0.35, 0.6]]]])
  found_of_two = citation_attention.attended_passages(two, np.array([[1, 2]]))
  assert found_of_two.tolist() == [[2]]
  # A sink is no passage, and may be left out.
  weights[:, 0, 0, 0] = 0.9
  again = citation_attention.attended_passages(weights, PASSAGES)
  np.testing.assert_array_equal(again, found)
  sinks = citation_attention.attended_passages(
    weights, PASSAGES, only_passages=False
  )
  assert sinks.tolist() == [[0, 2], [0, 3], [0, 2], [0, 1]]
  for passages, message in (
    (PASSAGES[:, :7], r"passages has shape \(4, 7\)"),
    (np.where(PASSAGES[0] == PASSAGES, 0, 1), "a row of zeros"),
  ):
    with pytest.raises(ValueError, match=message):
      citation_attention.attended_passages(weights, passages)


def test_agreement_by_hand():
  weights = maps([[1, 4], [5, 6], [2, 3], [4, 1]])
  # Attended: 1 2, 3 3, 1 2, 2 1.
  got = citation_attention.retrieval_agreement(
    weights,
    PASSAGES,
    cited=[[1, 2], [3], [3], [2]],
    right=[[2], [1], [3], [3]],
  )
  # Both, neither, only cited, neither.
  assert got.agreement == 0.75
  assert (got.attended, got.cited) == (0.25, 0.5)
  attended = [1, 1, 0, 0, 0, 2, 1, 1, 0, 1, 1, 0]
  cited = [1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0]
  np.testing.assert_allclose(
    got.correlation, np.corrcoef(attended, cited)[0, 1]
  )
  # Padding does not count.
  got = citation_attention.retrieval_agreement(
    weights,
    PASSAGES,
    cited=[[1], [3], [1], [2]],
    right=[[1], [1], [3], [3]],
    counted=np.array([[True, False]] * 4),
  )
  assert got.agreement == 1
  np.testing.assert_allclose(got.correlation, 1)
  with pytest.raises(ValueError, match="of 4 answers, cited of 3"):
    citation_attention.retrieval_agreement(
      weights, PASSAGES, [[1]] * 3, [[1]] * 4
    )


def test_citations_that_were_shuffled_do_not_agree():
  rng = np.random.default_rng(0)
  right = rng.integers(1, 4, 300)
  passages = np.repeat(PASSAGES[:1], 300, axis=0)
  weights = np.zeros((300, 1, 1, 8))
  weights[np.arange(300), 0, 0, 2 * right - 1] = 1
  found = [
    citation_attention.retrieval_agreement(
      weights, passages, cited[:, None].tolist(), right[:, None].tolist()
    )
    for cited in (right, rng.permutation(right))
  ]
  assert found[0][:2] == (1, pytest.approx(1))
  assert abs(found[1].correlation) < 0.15
  assert found[1].agreement < 0.45
  # What never changes has no correlation.
  same = citation_attention.retrieval_agreement(
    weights[:2], passages[:2], [[], []], [[1], [1]]
  )
  assert np.isnan(same.correlation)


def test_maps_of_a_model_are_those_of_its_layers():
  model = small.model(depth=2)
  variables = small.variables(model)
  tokens = small.tokens((2, 5))
  queries = np.array([[4, 2], [1, 4]])
  got = citation_attention.citation_maps(model, variables, tokens, queries)
  _, state = jax.jit(lambda v, x: model.apply(v, x, mutable=["intermediates"]))(
    variables, tokens
  )
  for layer in range(2):
    layer_maps = state["intermediates"][f"layer_{layer}"]["mixer"]
    whole = np.asarray(layer_maps["attention_weights"])
    for row in range(2):
      np.testing.assert_allclose(
        got[row, 4 * layer : 4 * layer + 4],
        whole[row][:, queries[row]],
        rtol=1e-5,
      )
  np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)
