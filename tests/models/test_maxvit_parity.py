"""MaxViT against timm's port of the official weights, and without timm."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import pretrained
from tests import parity_helper
from tests.models import make_golden, small


def _pair(name, seed):
  """Returns our model, its random variables, and timm's with the same."""
  _, timm = parity_helper.import_timm()
  model = models.create(name)
  variables = parity_helper.random_variables(model, seed)
  theirs = timm.create_model(name)
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  return model, variables, theirs.eval()


@pytest.mark.parity
@pytest.mark.parametrize("name", ["maxvit_small_tf_224", "maxvit_tiny_tf_384"])
def test_logits(name):
  model, variables, theirs = _pair(name, seed=1)
  images = parity_helper.random_images(1, model.size_multiple)
  expected = parity_helper.timm_logits(theirs, images)
  logits = small.apply(model, variables, images)
  assert expected.std() > 0.3
  # The least of the mistakes known, LayerNorm's epsilon, moves logits by 3e-5.
  np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parity
def test_logits_and_gradients():
  torch, _ = parity_helper.import_timm()
  model, variables, theirs = _pair("maxvit_tiny_tf_224", seed=0)
  images = parity_helper.random_images(1, 224)
  direction = np.random.default_rng(2).standard_normal((1, 1000), np.float32)

  batch = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
  expected = theirs(batch)
  (expected * torch.from_numpy(direction)).sum().backward()

  @jax.jit
  def gradients(params, images):
    def loss(params, images):
      logits = model.apply({**variables, "params": params}, images)
      return jnp.sum(logits * direction), logits

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)

  (grads, image_grad), logits = gradients(variables["params"], images)
  np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-5)
  _assert_close("images", image_grad, batch.grad.permute(0, 2, 3, 1).numpy())
  ours = pretrained.to_tensors({"params": grads}, model)
  named = dict(theirs.named_parameters())
  assert ours.keys() == named.keys()
  for name, parameter in named.items():
    _assert_close(name, ours[name], parameter.grad.numpy())


def _assert_close(name, value, expected):
  """Compares gradients, whose sizes differ by orders from name to name."""
  error = np.abs(value - expected).max()
  assert error < 2e-4 * np.abs(expected).max() + 1e-6, name


@pytest.mark.parity
def test_golden_logits_are_timm_s():
  stored = np.load(make_golden.PATH)["logits"]
  np.testing.assert_allclose(make_golden.timm_logits(), stored, atol=1e-5)


def test_golden_logits():
  """For those without timm: what it said of weights drawn by numpy."""
  assert pathlib.Path(make_golden.PATH).stat().st_size < 50_000
  model, variables, images = make_golden.inputs()
  logits = small.apply(model, variables, images)
  stored = np.load(make_golden.PATH)["logits"]
  np.testing.assert_allclose(logits, stored, atol=1e-5)


def test_golden_logits_depend_on_every_kind_of_variable():
  """Or else the test above could not fail."""
  model, variables, images = make_golden.inputs()
  stored = np.load(make_golden.PATH)["logits"]
  apply = jax.jit(model.apply)
  flat = traverse_util.flatten_dict(variables)
  for leaf in ("kernel", "bias", "relative_bias_table", "scale", "mean", "var"):
    changed = {
      path: value * 1.05 if path[-1] == leaf else value
      for path, value in flat.items()
    }
    logits = apply(traverse_util.unflatten_dict(changed), images)
    assert np.abs(logits - stored).max() > 1e-4, leaf
