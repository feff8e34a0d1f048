"""Scores of documents: numbers of the sheet, orders, groups, and a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import attention_influence, head_edits
from tests.models import language

rng = np.random.default_rng(0)
LOSS = np.array([1, 2, 3, 0.5], np.float32)
MASKED = np.array([1.5, 2.4, 3.9, 0.9], np.float32)


def test_scores_of_the_sheet():
  influence = functools.partial(attention_influence.influence, LOSS, MASKED)
  np.testing.assert_allclose(influence(), [0.5, 0.2, 0.3, 0.8], rtol=1e-5)
  difference = influence(form="difference")
  np.testing.assert_allclose(difference, [0.5, 0.4, 0.9, 0.4], rtol=1e-5)
  assert np.argmax(influence()) == 3
  assert np.argmax(difference) == 2
  # The last is below the floor.
  floored = influence(floor=0.6)
  np.testing.assert_allclose(floored, [0.5, 0.2, 0.3, 2 / 3], rtol=1e-5)
  half = attention_influence.influence(
    jnp.asarray(LOSS, jnp.bfloat16), jnp.asarray(MASKED, jnp.bfloat16)
  )
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, [0.5, 0.2, 0.3, 0.8], atol=0.01)
  gradient = jax.grad(
    lambda loss: attention_influence.influence(loss, MASKED).sum()
  )(LOSS)
  np.testing.assert_allclose(gradient, -MASKED / LOSS**2, rtol=1e-5)
  with pytest.raises(ValueError, match="form is 'ratio'"):
    influence(form="ratio")


def test_both_relative_forms_select_the_same():
  loss = rng.uniform(0.2, 4, 200)
  masked = loss * rng.uniform(0.9, 2, 200)
  domains = rng.integers(0, 3, 200)
  selected = {
    form: attention_influence.select(
      attention_influence.influence(loss, masked, form), domains, 0.2
    )
    for form in attention_influence.FORMS
  }
  np.testing.assert_array_equal(
    selected["relative"], selected["relative_to_masked"]
  )
  assert (selected["relative"] != selected["difference"]).any()
  relative, other = (
    attention_influence.influence(loss, masked, form)
    for form in ("relative", "relative_to_masked")
  )
  assert (relative > 0.5).sum() != (other > 0.5).sum()


def test_selection_is_within_domains():
  scores = np.array([9.0, 8, 7, 6, 5, 1, 3, 2, 4, 4])
  domains = np.array([0, 0, 0, 0, 0, 7, 7, 7, 7, 7])
  chosen = attention_influence.select(scores, domains, 0.4)
  assert np.flatnonzero(chosen).tolist() == [0, 1, 8, 9]
  first = attention_influence.select(scores, domains, 0.2)
  assert np.flatnonzero(first).tolist() == [0, 8]
  assert attention_influence.select(scores, domains, 1.0).all()
  assert not attention_influence.select(scores, domains, 0.1).any()
  many = attention_influence.select(np.arange(100.0), np.zeros(100, int), 0.29)
  assert many.sum() == 29
  bad = np.array([np.nan, 1])
  with pytest.raises(ValueError, match="scores has 1 that are not"):
    attention_influence.select(bad, np.zeros(2), 0.5)
  with pytest.raises(ValueError, match=r"\(2,\) and groups \(3,\)"):
    attention_influence.select(bad, np.zeros(3), 0.5)
  with pytest.raises(ValueError, match="fraction is 20; it"):
    attention_influence.select(scores, domains, 20)


def test_strata_take_length_out_of_a_score():
  lengths = rng.integers(10, 100, 300)
  domains = rng.integers(0, 2, 300)
  groups = attention_influence.strata(lengths, 3, domains)
  assert {*groups} == {*range(6)}
  for group in range(6):
    own = groups == group
    assert {*domains[own]} == {group // 3}
  ends = [lengths[groups % 3 == s] for s in range(3)]
  assert ends[0].max() <= ends[1].min()
  assert ends[1].max() <= ends[2].min()
  assert all(60 < len(part) < 140 for part in ends)
  # A score that is length and nothing else takes the longest, unless within.
  plain = attention_influence.select(lengths, domains, 0.2)
  within = attention_influence.select(lengths, groups, 0.2)
  assert lengths[plain].mean() > lengths[within].mean() + 10
  with pytest.raises(ValueError, match="count is 0"):
    attention_influence.strata(lengths, 0)


def test_losses_of_documents_by_hand():
  model = language.model(depth=2)
  variables = language.variables(model)
  tokens = language.tokens()
  counted = np.arange(language.LENGTH)[None] < np.array([[11], [4], [7]])
  run = jax.jit(
    lambda mask: attention_influence.losses(
      model, variables, tokens, mask, counted=counted
    )
  )
  none = np.zeros((2, 4), bool)
  logits = np.asarray(model.apply(variables, tokens), np.float64)
  probability = np.exp(logits)
  probability /= probability.sum(-1, keepdims=True)
  expected = [
    -np.mean(
      [
        np.log(probability[row, t - 1, tokens[row, t]])
        for t in range(1, counted[row].sum())
      ]
    )
    for row in range(3)
  ]
  found = run(none)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  other = run(head_edits.mask_of([(0, 1), (1, 2)], 2, 4))
  assert (np.abs(other - found) > 1e-3).all()
  zero = attention_influence.losses(
    model,
    variables,
    tokens,
    head_edits.mask_of([(0, 1), (1, 2)], 2, 4),
    head_edits.Ablation("scale"),
    counted=counted,
  )
  assert (np.abs(other - zero) > 1e-4).all()
  with pytest.raises(ValueError, match=r"mask has shape \(4,\).*\(2, 4\)"):
    attention_influence.losses(model, variables, tokens, none[0])
