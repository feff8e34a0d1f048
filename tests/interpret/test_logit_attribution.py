"""Parts of a logit add up to it, and each is what the part wrote."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
from interpret import logit_attribution
from tests.models import language

MODELS = {
  "gpt2-like": {
    "norm": "layer_norm",
    "position_encoding": "learned",
    "mlp": "gelu",
    "mlp_bias": True,
    "attention_bias": True,
    "out_bias": True,
    "head_bias": True,
  },
  "gemma-like": {
    "norm_placement": "sandwich",
    "norm_offset": True,
    "logit_soft_cap": 3.0,
    "out_bias": True,
    "scan_layers": True,
  },
  "gated, head of its own": {
    "output_gate": "headwise",
    "tied_head": False,
    "mixers": ("sliding", "full"),
    "window": 3,
  },
  "no mlp": {"mlp": "none", "norm": "layer_norm", "norm_bias": False},
}


def _made(name, **fields):
  model = language.model(depth=2, **{**MODELS[name], **fields})
  return model, language.variables(model)


@pytest.mark.parametrize("name", MODELS)
def test_parts_add_up_to_the_logit(name):
  model, variables = _made(name)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  n = 4
  targets, against = language.tokens((2, 3, n), seed=3)

  @jax.jit
  def run(variables, tokens):
    call = functools.partial(
      logit_attribution.attribute, model, variables, tokens, targets, **places
    )
    logits = model.apply(variables, tokens, **places)[:, -n:]
    return call(), call(heads=False), call(against), logits

  parts, whole, between, logits = run(variables, tokens)
  if model.logit_soft_cap:
    logits = model.logit_soft_cap * np.arctanh(logits / model.logit_soft_cap)

  def of(numbers):
    return np.take_along_axis(np.asarray(logits), numbers[..., None], -1)[
      ..., 0
    ]

  assert of(targets).std() > 0.3
  for given in (parts, whole):
    total = logit_attribution.total(given)
    np.testing.assert_allclose(total, of(targets), atol=2e-5)
  total = logit_attribution.total(between)
  np.testing.assert_allclose(total, of(targets) - of(against), atol=2e-5)
  for i in range(2):
    heads = parts[f"layer_{i}/mixer/head_outputs"]
    assert (np.abs(heads).max((0, 1)) > 1e-2).all()
    mixer = heads.sum(-1) + parts[f"layer_{i}/mixer/bias"]
    name = f"layer_{i}/mixer_output"
    np.testing.assert_allclose(mixer, whole[name], atol=2e-5)


def test_a_part_is_what_the_logit_loses_with_a_frozen_norm():
  """By an edit of the model: of the last layer, whose norm alone is left."""
  model, variables = _made("gpt2-like")
  tokens = language.tokens()
  targets = language.tokens((3, 2), seed=3)
  parts = logit_attribution.attribute(model, variables, tokens, targets)
  last = "layer_1/mlp_output"
  _, values = interpret.run(
    model, variables, tokens, read=["layer_1/hidden_state", last]
  )
  state = values["layer_1/hidden_state"]
  deviation = np.sqrt(
    np.var(state, axis=-1, keepdims=True) + model.norm_epsilon
  )
  params = variables["params"]
  written = np.asarray(values[last])
  written = written - written.mean(-1, keepdims=True)
  written = written / deviation * params["final_norm"]["scale"][None, None]
  expected = written @ params["embed"]["embedding"].T
  expected = np.take_along_axis(expected[:, -2:], targets[..., None], -1)
  np.testing.assert_allclose(parts[last], expected[..., 0], atol=1e-5)
  assert parts["layer_0/mixer/head_outputs"].shape == (3, 2, 4)


def test_it_has_gradients_in_bfloat16_too():
  model, variables = _made("gpt2-like", dtype=jnp.bfloat16)
  tokens, targets = language.tokens(), language.tokens((3, 1), seed=3)

  @jax.jit
  def run(variables):
    parts = logit_attribution.attribute(model, variables, tokens, targets)
    return logit_attribution.total(parts)

  logits = np.asarray(model.apply(variables, tokens)[:, -1:])
  expected = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(run(variables), expected, atol=0.1)
  gradient = jax.grad(lambda v: run(v).sum())(variables)
  norms = [float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)]
  assert np.isfinite(norms).all()
  assert np.median(norms) > 0


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"norm_placement": "post"}, "norm_placement is 'post'"),
    ({"residual": "attention"}, "residual is 'attention'"),
    ({"residual_clip": 9.0}, "residual_clip is 9.0"),
    ({"norm": "dynamic_tanh"}, "norm is 'dynamic_tanh'"),
    (
      {"output_gate": "elementwise", "gate_position": "projection"},
      "take heads=False",
    ),
  ],
)
def test_models_whose_logits_are_no_sum(fields, said):
  model = language.model(**fields)
  with pytest.raises(ValueError, match=said):
    logit_attribution.attribute(model, {}, language.tokens(), np.ones((3, 1)))


def test_shapes_that_do_not_fit():
  model = language.model()
  variables = language.variables(model)
  call = functools.partial(
    logit_attribution.attribute, model, variables, language.tokens()
  )
  with pytest.raises(ValueError, match=r"targets has shape \(3,\)"):
    call(np.ones(3, int))
  with pytest.raises(ValueError, match=r"against has shape \(3, 2\)"):
    call(np.ones((3, 1), int), np.ones((3, 2), int))
  with pytest.raises(ValueError, match="rows have 11 positions"):
    call(np.ones((3, 12), int))
