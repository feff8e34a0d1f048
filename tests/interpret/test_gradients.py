"""Gradients against differences, and where a metric is linear against it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
from interpret import gradients, metrics
from tests.models import language

METRIC = functools.partial(metrics.logit_difference, right=2, wrong=7)


def _made(**fields):
  model = language.model(depth=2, **fields)
  return model, language.variables(model), language.tokens((2, 6))


def test_of_tokens_against_differences():
  model, variables, tokens = _made(scan_layers=True)
  found = jax.jit(lambda v: gradients.of_tokens(model, v, tokens, METRIC))(
    variables
  )
  assert found.shape == tokens.shape
  one_hot = jax.nn.one_hot(tokens, model.vocabulary_size)
  run = jax.jit(lambda x: METRIC(model.apply(variables, x)).sum())
  for row, place in ((0, 2), (1, 5)):
    longer, shorter = (
      run(one_hot.at[row, place].multiply(1 + sign * 1e-2)) for sign in (1, -1)
    )
    slope = (longer - shorter) / 2e-2
    assert found[row, place] == pytest.approx(float(slope), rel=2e-2, abs=1e-3)
  assert np.abs(found).min() > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_head_reads_adds_up_to_the_logits(dtype):
  model, variables, tokens = _made(dtype=getattr(jnp, dtype))
  names = ["final_state", "layer_*/hidden_state"]
  found = jax.jit(
    lambda v: tuple(gradients.of_taps(model, v, tokens, METRIC, names))
  )(variables)
  found = gradients.Gradients(*found)
  products = found.times_values()
  assert sorted(products) == [
    "final_state",
    "layer_0/hidden_state",
    "layer_1/hidden_state",
  ]
  expected = METRIC(model.apply(variables, tokens))
  tolerance = 1e-4 if dtype == "float32" else 0.1
  np.testing.assert_allclose(
    products["final_state"].sum((1, 2)), expected, atol=tolerance
  )
  # An RMS norm takes out the size of what it reads.
  ahead = products["layer_1/hidden_state"].sum((1, 2))
  np.testing.assert_allclose(ahead, np.zeros(2), atol=tolerance)
  assert np.abs(products["layer_0/hidden_state"]).max() > 1e-2


def test_of_taps_against_differences():
  """Also by a value that another value that is read depends on."""
  model, variables, tokens = _made(scan_layers=True)
  name = "layer_0/mixer/attention_weights"
  read = [name, "layer_*/mixer_output"]
  found = gradients.of_taps(model, variables, tokens, METRIC, read)
  assert next(iter(found.values)) == name
  run = jax.jit(
    lambda array: METRIC(
      interpret.run(model, variables, tokens, edit={name: array})[0]
    ).sum()
  )
  rng = np.random.default_rng(0)
  way = jnp.asarray(1e-2 * rng.normal(size=found.values[name].shape), "f4")
  rise = run(found.values[name] + way) - run(found.values[name] - way)
  slope = float((found.gradients[name] * way).sum())
  assert 2 * slope == pytest.approx(float(rise), rel=2e-2)
  assert abs(slope) > 1e-3


def test_errors():
  model, variables, tokens = _made()
  with pytest.raises(ValueError, match="tokens are float32"):
    gradients.of_tokens(model, variables, jnp.ones((2, 6)), METRIC)
  read = ["layer_7/hidden_state"]
  with pytest.raises(ValueError, match="there is no tap 'layer_7"):
    gradients.of_taps(model, variables, tokens, METRIC, read)
