"""Sinks and outliers against loops over tokens in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import statistics
from models import taps
from tests.models import language

BATCH, HEADS, LENGTH, WIDTH = len(language.PACKED), 3, language.LENGTH, 5
rng = np.random.default_rng(0)


def _documents():
  return [
    (row, start, end)
    for row, documents in enumerate(language.PACKED)
    for start, end in documents
  ]


def _maps():
  """Causal weights of each document, with garbage where nobody looks."""
  weights = 7 * rng.standard_normal((BATCH, HEADS, LENGTH, LENGTH))
  for row, start, end in _documents():
    weights[row, :, start:end] = 0
    for query in range(start, end):
      shares = rng.dirichlet(np.ones(query - start + 1), HEADS)
      weights[row, :, query, start : query + 1] = shares
  return weights.astype(np.float32)


@pytest.mark.parametrize("skip", [0, 2])
def test_first_token_attention(skip):
  weights = _maps()
  _, positions, segments = language.packed()
  expected = np.mean(
    [
      weights[row, :, query, start]
      for row, start, end in _documents()
      for query in range(start + skip, end)
    ],
    axis=0,
  )
  measured = jax.jit(
    functools.partial(statistics.first_token_attention, skip=skip)
  )(weights, positions, segments)
  np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_places_that_are_not_given():
  weights = _maps()
  # The padding of the second row, and the documents of the third, count then.
  expected = weights[..., 0].mean((0, 2))
  measured = statistics.first_token_attention(jnp.asarray(weights))
  np.testing.assert_allclose(measured, expected, rtol=1e-5)
  even = np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None]
  even = jnp.asarray(np.tile(even, (1, 1, 1, 1)))
  harmonic = sum(1 / n for n in range(1, LENGTH + 1)) / LENGTH
  measured = statistics.first_token_attention(even)
  np.testing.assert_allclose(measured, [harmonic], rtol=1e-5)
  entropy = statistics.attention_entropy(even)
  logarithms = np.log(np.arange(1, LENGTH + 1)).mean()
  np.testing.assert_allclose(entropy, [logarithms], rtol=1e-5)


def test_attention_entropy():
  weights = _maps()
  # Neither sums of one nor signs change it, and nothing seen has none.
  row, start, end = _documents()[2]
  weights[row, :, start + 1 : end] *= -3
  weights[row, :, end - 1] = 0
  _, positions, segments = language.packed()
  each = []
  for row, start, end in _documents():
    for query in range(start, end):
      shares = np.abs(weights[row, :, query, start:end]).astype(np.float64)
      total = shares.sum(-1, keepdims=True)
      shares = shares / np.where(total > 0, total, 1)
      logarithms = np.log(np.where(shares > 0, shares, 1))
      each.append(-(shares * logarithms).sum(-1))
  measured = jax.jit(statistics.attention_entropy)(weights, positions, segments)
  np.testing.assert_allclose(measured, np.mean(each, axis=0), rtol=1e-5)


def test_received_attention():
  weights = _maps()
  _, positions, segments = language.packed()
  expected = np.zeros((BATCH, HEADS, LENGTH))
  for row, start, end in _documents():
    for key in range(start, end):
      seen_by = weights[row, :, key:end, key]
      expected[row, :, key] = seen_by.mean(-1)
  found = statistics.received_attention(weights, positions, segments)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  # Both ways all queries count.
  row, start, end = _documents()[0]
  both = statistics.received_attention(weights, positions, segments, False)
  expected = weights[row, :, start:end, start:end].mean(1)
  np.testing.assert_allclose(both[row], expected, rtol=1e-5, atol=1e-6)


def test_a_statistic_of_every_head():
  model = language.model(depth=2, scan_layers=True)
  variables = language.variables(model)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  measure = statistics.attention_entropy
  found = statistics.of_heads(measure, model, variables, tokens, **places)
  names = [f"layer_{i}/mixer/attention_weights" for i in range(2)]
  assert list(found) == names
  _, maps = taps.read(model, variables, tokens, names=names, **places)
  for name in names:
    np.testing.assert_allclose(
      found[name], measure(maps[name], **places), rtol=1e-6
    )


def test_activations_and_gates_of_tokens_alone():
  _, positions, _ = language.packed()
  real = positions >= 0
  values = rng.standard_normal((BATCH, LENGTH, HEADS, WIDTH)).astype(np.float32)
  values[~real] = 1e9
  largest = statistics.largest_activation(values, positions)
  np.testing.assert_allclose(largest, np.abs(values[real]).max())
  mean = statistics.mean_value(jnp.asarray(values), positions)
  np.testing.assert_allclose(mean, values[real].mean(), rtol=1e-5)
  # Gates that no token decides.
  same = jnp.asarray(values[:1, :1])
  np.testing.assert_allclose(
    statistics.mean_value(same, positions), values[0, 0].mean(), rtol=1e-5
  )


def test_residual_sinks():
  _, positions, _ = language.packed()
  real = positions >= 0
  states = rng.standard_normal((4, BATCH, LENGTH, WIDTH)).astype(np.float32)
  states[..., 3] += 50
  states[:, ~real] = np.nan
  expected = np.abs(states[:, real]).mean((0, 1))
  found = jax.jit(statistics.residual_sinks)(list(states), positions)
  np.testing.assert_allclose(found.average, expected, rtol=1e-5)
  np.testing.assert_allclose(
    found.ratio, expected.max() / np.median(expected), rtol=1e-5
  )
  assert found.channel == 3


def test_smallest_norm_weight():
  params = {
    "layer_0": {"mixer_norm": {"scale": jnp.array([-0.3, 2.0])}},
    "final_norm": {"scale": jnp.array([0.7, -0.9])},
    # No normalisation.
    "other": {"scale": jnp.array([0.1])},
  }
  measure = statistics.smallest_norm_weight
  np.testing.assert_allclose(measure(params), 0.3)
  np.testing.assert_allclose(measure(params, offset=True), 0.1, rtol=1e-5)
  assert measure({}) == jnp.inf


@pytest.mark.parametrize("scan", [False, True])
def test_the_summary_of_a_transformer(scan):
  model = language.model(depth=2, output_gate="headwise", scan_layers=scan)
  variables = language.variables(model)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  result = jax.jit(functools.partial(statistics.summary, model))(
    variables, tokens, **places
  )
  _, values = taps.read(model, variables, tokens, names=["*"], **places)
  real = positions >= 0
  states = [
    np.asarray(value)[real]
    for name, value in sorted(values.items())
    if name.endswith(("hidden_state", "embedded_state"))
  ]
  assert len(states) == 3
  largest = [np.abs(state).max() for state in states]
  np.testing.assert_allclose(result["largest_activation"], max(largest), 1e-5)
  np.testing.assert_allclose(result["mean_largest"], np.mean(largest[1:]), 1e-5)
  average = np.mean([np.abs(state).mean(0) for state in states], axis=0)
  np.testing.assert_allclose(
    result["residual_sinks"], average.max() / np.median(average), rtol=1e-4
  )
  gates = [
    np.asarray(value)[real].mean()
    for name, value in values.items()
    if "gate_values" in name
  ]
  assert len(gates) == 2
  np.testing.assert_allclose(result["mean_gate"], np.mean(gates), rtol=1e-5)
  maps = [v for name, v in values.items() if "attention_weights" in name]
  on_first = [
    statistics.first_token_attention(m, positions, segments) for m in maps
  ]
  np.testing.assert_allclose(
    result["first_token_attention"], np.mean(on_first), rtol=1e-5
  )
  norms = [
    np.abs(leaf).min()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    if "norm" in str(path)
  ]
  np.testing.assert_allclose(result["smallest_norm_weight"], min(norms))


def test_a_model_without_maps_has_a_summary():
  model = language.model(mixers=("linear",), norm="layer_norm", norm_bias=False)
  variables = language.variables(model)
  result = statistics.summary(model, variables, language.tokens())
  assert "mean_gate" not in result
  assert set(result) >= {"largest_activation", "residual_sinks"}


def test_shapes_that_do_not_agree():
  weights = jnp.zeros((2, 3, 4, 4))
  with pytest.raises(ValueError, match=r"positions has shape \(2, 5\).*2, 4\)"):
    statistics.first_token_attention(weights, jnp.zeros((2, 5), jnp.int32))
  with pytest.raises(ValueError, match=r"\(3, 4, 4\); they must be \[batch, h"):
    statistics.attention_entropy(weights[0])
