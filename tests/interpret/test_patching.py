"""Patched runs against runs with values put in by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
import models
from interpret import metrics, patching
from tests.models import language

METRIC = functools.partial(metrics.logit_difference, right=3, wrong=8)


def _made(**fields):
  model = language.model(depth=2, **fields)
  source, target = language.tokens((2, 2, 7), seed=2)
  return model, language.variables(model), source, target


def test_a_position_is_patched_at_a_time():
  model, variables, source, target = _made(scan_layers=True)
  traced = []

  def metric(logits):
    traced.append(logits.shape)
    return METRIC(logits)

  found = patching.patch(model, variables, source, target, metric)
  # Of the source, the target, a batch of patched runs, and a last one that is
  # smaller: all others are the same program.
  assert len(traced) <= 4
  assert found.names == ("layer_0/hidden_state", "layer_1/hidden_state")
  assert found.grid.shape == (2, 7, 2)
  _, values = interpret.run(model, variables, source, read=found.names)
  for layer, place in [(0, 3), (1, 6)]:
    name = found.names[layer]
    _, own = interpret.run(model, variables, target, read=[name])
    mixed = own[name].at[:, place].set(values[name][:, place])
    out, _ = interpret.run(model, variables, target, edit={name: mixed})
    np.testing.assert_allclose(found.grid[layer, place], METRIC(out), atol=1e-5)
  for inputs, measured in ((source, found.source), (target, found.target)):
    out = model.apply(variables, inputs)
    np.testing.assert_allclose(measured, METRIC(out), atol=1e-5)
  # The last layer's last state is all that the metric sees.
  np.testing.assert_allclose(found.restored()[1, 6], 1, atol=1e-4)
  np.testing.assert_allclose(found.restored()[1, :6], 0, atol=1e-4)
  between = np.abs(found.grid[0] - found.target[None])
  assert (between.max(0) > 1e-2).all()


def test_a_head_is_patched_at_a_time():
  model, variables, source, target = _made()
  tap = "layer_*/mixer/head_outputs"
  found = patching.patch(
    model,
    variables,
    source,
    target,
    METRIC,
    tap=tap,
    axes=(1, -2),
    batch_size=5,
  )
  assert found.grid.shape == (2, 7, 4, 2)
  name = "layer_0/mixer/head_outputs"
  values = [
    interpret.run(model, variables, x, read=[name])[1][name]
    for x in (source, target)
  ]
  mixed = values[1].at[:, 2, 3].set(values[0][:, 2, 3])
  out, _ = interpret.run(model, variables, target, edit={name: mixed})
  np.testing.assert_allclose(found.grid[0, 2, 3], METRIC(out), atol=1e-5)


def test_a_whole_layer_of_another_model():
  """Nothing is known of how layers are called or of what a model returns."""
  model = models.create(
    "vit_tiny_16_224",
    num_classes=3,
    patch_size=8,
    width=16,
    depth=2,
    heads=2,
    image_size=16,
  )
  images = jax.random.normal(jax.random.key(0), (2, 1, 16, 16, 3))
  variables = jax.jit(model.init)(jax.random.key(1), images[0])
  found = patching.patch(
    model,
    variables,
    images[0],
    images[1],
    lambda logits: logits[0],
    tap="block_*/hidden_state",
    axes=(),
  )
  assert found.grid.shape == (2, 3)
  # All that follows is of the source.
  np.testing.assert_allclose(found.grid, jnp.tile(found.source, (2, 1)), 1e-5)
  assert jnp.abs(found.source - found.target).max() > 1e-3


def test_errors():
  model, variables, source, target = _made()
  call = functools.partial(patching.patch, model, variables)
  with pytest.raises(ValueError, match=r"did you mean layer_\d/hidden_state"):
    call(source, target, METRIC, tap="layer_0/hiden_state")
  with pytest.raises(ValueError, match=r"axes=\(3,\).*from 0 to 2"):
    call(source, target, METRIC, axes=(3,))
  with pytest.raises(ValueError, match=r"source has shape \(2, 7\)"):
    call(source, target[:, 1:], METRIC)
  with pytest.raises(ValueError, match="have other sizes in other layers"):
    call(source, target, METRIC, tap="layer_0/m*", axes=(1, -1))
