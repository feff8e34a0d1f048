"""Ships and Sahara: numbers of the sheet, SciPy, and all groups tried."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import interpret
from interpret import head_attribution, head_edits
from tests.models import language

rng = np.random.default_rng(0)


def test_the_divergence_of_the_sheet():
  p, q = np.log([0.7, 0.2, 0.1]), np.log([0.2, 0.5, 0.3])
  kl = jax.jit(head_attribution.ships_kl)
  np.testing.assert_allclose(kl(p, q), 0.583815, atol=1e-6)
  np.testing.assert_allclose(kl(q + 3, p), 0.537176, atol=1e-6)
  assert kl(p, p) == 0
  # No probability is no term, and no gradient that is no number.
  masked = jnp.array([0.0, 0.0, -jnp.inf])
  assert kl(masked, masked) == 0
  np.testing.assert_allclose(kl(masked, p), -0.5 * np.log(4 * 0.7 * 0.2), 1e-5)
  gradient = jax.grad(kl, argnums=1)(p, q)
  np.testing.assert_allclose(gradient, np.exp(q) - np.exp(p), atol=1e-6)
  half = jnp.asarray(np.stack([p, q]), jnp.bfloat16)
  assert kl(half, half[::-1]).dtype == jnp.float32
  np.testing.assert_allclose(kl(half[0], half[1]), 0.583815, atol=1e-2)


def test_the_angles_of_the_sheet():
  angles = head_attribution.subspace_angles
  one = np.array([[2.0, 0], [1, 0], [2, 0]])
  other = np.array([[2.0, 0], [2, 0], [1, 0]])
  np.testing.assert_allclose(angles(one, other), [27.266044], rtol=1e-6)
  one = np.array([[3.0, 0], [0, 1], [0, 0]])
  other = np.array([[1.0, 0], [0, 3], [0, 0]])
  np.testing.assert_allclose(angles(one, other), [90], atol=1e-4)
  np.testing.assert_allclose(angles(one, other, rank=2), [0, 0], atol=1e-4)


@pytest.mark.parametrize("side", head_attribution.SIDES)
@pytest.mark.parametrize("step", [1e-5, 0.3, 3.0])
def test_angles_are_those_of_scipy(step, side):
  """In float64 there; float32 here tells a hundred thousandth of a part."""
  one = rng.standard_normal((9, 6)).astype(np.float32)
  other = (one + step * rng.standard_normal((9, 6))).astype(np.float32)
  rank = 2
  bases = []
  for matrix in (one, other):
    u, _, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    bases.append(u[:, :rank] if side == "queries" else v[:rank].T)
  expected = np.degrees(scipy.linalg.subspace_angles(*bases))[::-1]
  found = jax.jit(
    functools.partial(head_attribution.subspace_angles, rank=rank, side=side)
  )(one, other)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
  if step == 1e-5:
    # Where the cosine alone says 0.
    assert expected.max() < 0.0198


def test_what_the_angles_of_queries_do_not_see():
  """A rotation of features, and a shift that all queries have in common."""
  states = rng.standard_normal((8, 5)).astype(np.float32)
  turned, _ = np.linalg.qr(rng.standard_normal((5, 5)))
  rotated = (states @ turned).astype(np.float32)
  change = np.linalg.norm(rotated - states) / np.linalg.norm(states)
  assert change > 0.5
  angles = head_attribution.subspace_angles
  np.testing.assert_allclose(angles(states, rotated), 0, atol=1e-3)
  assert angles(states, rotated, side="features") > 5
  a, b = rng.standard_normal((2, 5)).astype(np.float32)
  one, other = np.tile(a, (8, 1)), np.tile(b, (8, 1))
  np.testing.assert_allclose(angles(one, other), 0, atol=1e-3)
  between = np.degrees(
    np.arccos(abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b))
  )
  np.testing.assert_allclose(
    angles(one, other, side="features"), [between], rtol=1e-4
  )


def test_sahara_is_the_best_of_one_and_greedy_after():
  gain = rng.standard_normal((2, 3))
  pairs = rng.standard_normal((6, 6))
  asked = []

  def score(mask):
    asked.append(mask)
    flat = mask.ravel().astype(float)
    return float((gain * mask).sum() + flat @ pairs @ flat)

  group = head_attribution.sahara(score, 2, 3, 3)
  assert len(asked) == 6 + 5 + 4
  every = list(itertools.product(range(2), range(3)))
  value = lambda heads: score(head_edits.mask_of(heads, 2, 3))
  assert group.heads[0] == max(every, key=lambda head: value([head]))
  for size in (1, 2, 3):
    rest = [head for head in every if head not in group.heads[: size - 1]]
    best = max(value([*group.heads[: size - 1], head]) for head in rest)
    np.testing.assert_allclose(group.scores[size - 1], best)
    assert value(group.heads[:size]) == group.scores[size - 1]
  with pytest.raises(ValueError, match=r"size is 7; .* 1 to 6"):
    head_attribution.sahara(score, 2, 3, 7)
  with pytest.raises(
    ValueError, match=r"score of \[\(0, 0\)\] is not a number"
  ):
    head_attribution.sahara(lambda mask: float("nan"), 2, 3, 1)


def test_ships_of_a_model_is_one_program_and_each_head_by_hand():
  model = language.model(depth=2)
  variables = language.variables(model)
  tokens = language.tokens()
  traces = []

  def ships(variables, tokens):
    traces.append(0)
    return head_attribution.ships(model, variables, tokens)

  found = jax.jit(ships)(variables, tokens)
  assert found.shape == (2, 4, 3)
  assert len(traces) == 1
  intact = model.apply(variables, tokens)[:, -1]
  for layer, head in ((0, 2), (1, 3)):
    out, values = interpret.run(
      model,
      variables,
      tokens,
      read=["final_state"],
      edit={
        f"layer_{layer}/mixer/attention_weights": head_edits.Ablation(
          heads=(head,)
        )
      },
    )
    expected = head_attribution.ships_kl(intact, out[:, -1])
    np.testing.assert_allclose(
      found[layer, head], expected, rtol=1e-3, atol=1e-6
    )
    assert (expected > 1e-5).all()
  last = jnp.array([4, 10, 0])
  mask = head_edits.mask_of([(1, 3)], 2, 4)[None]
  ablated = head_attribution.run_ablated(
    model, variables, tokens, mask, last=last
  )
  rows = np.arange(3)
  np.testing.assert_allclose(ablated.logits[0], out[rows, last], atol=1e-5)
  states = values["final_state"][rows, last]
  np.testing.assert_allclose(ablated.states[0], states, atol=1e-5)


def test_what_does_not_fit_the_model():
  model = language.model()
  variables = language.variables(model)
  run = functools.partial(
    head_attribution.run_ablated, model, variables, language.tokens()
  )
  with pytest.raises(ValueError, match=r"masks has shape \(1, 4\).*, 1, 4\]"):
    run(np.ones((1, 4), bool))
  with pytest.raises(ValueError, match=r"heads=\(1,\), but masks choose"):
    run(np.ones((1, 1, 4), bool), head_edits.Ablation(heads=(1,)))
  states = np.zeros((3, 5))
  with pytest.raises(ValueError, match=r"rank is 4; .* 1 to 3"):
    head_attribution.subspace_angles(states, states, rank=4)
  with pytest.raises(ValueError, match="side is 'left'"):
    head_attribution.subspace_angles(states, states, side="left")
  with pytest.raises(ValueError, match=r"\(3, 5\) and ablated \(5,\)"):
    head_attribution.subspace_angles(states, states[0])


def test_shares_of_llama():
  one = head_attribution.share_touched(1, 4096, 128, 6_738_000_000)
  np.testing.assert_allclose(one, 0.0078e-2, rtol=5e-3)
  three = head_attribution.share_touched(3, 4096, 128, 6_738_000_000)
  np.testing.assert_allclose(three, 0.0233e-2, rtol=5e-3)


def test_the_band_of_chance():
  """The middle of the sums of two numbers out of six."""
  values = np.arange(6.0).reshape(2, 3)
  mean, low, high = head_attribution.random_band(
    lambda mask: values[mask].sum(),
    np.random.default_rng(0),
    2,
    (2, 3),
    sets=2000,
    level=0.8,
  )
  assert mean == pytest.approx(5, abs=0.2)
  # Of the 15 sums one is 1 and one 2, one 8 and one 9.
  assert (low, high) == (2, 8)


def test_overlap():
  heads, others = [(0, 1), (2, 3), (1, 1)], [(2, 3), (1, 0), (0, 1)]
  assert head_attribution.overlap(heads, others) == pytest.approx(2 / 3)
  assert head_attribution.overlap(heads[:1], others[:1]) == 0
  for one, other in (([], []), (heads, others[:2]), (heads[:1] * 2, heads[:2])):
    with pytest.raises(ValueError, match="they must be as many, at least one"):
      head_attribution.overlap(one, other)
