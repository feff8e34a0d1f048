"""MaxViT against timm's port of the official weights, and without timm."""

import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util

import models
from models import pretrained
from tests import parity_helper
from tests.models import make_golden, small

# Each stage once and one of them twice, since compiling takes as long as there
# are blocks; the golden logits are those of a published depth.
DEPTHS = (1, 1, 2, 1)


def _pair(name, seed):
  """Returns our model, its random variables, and timm's with the same."""
  _, timm = parity_helper.import_timm()
  model = models.create(name, depths=DEPTHS)
  variables = parity_helper.random_variables(model, seed)
  theirs = timm.create_model(name, depths=DEPTHS)
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  return model, variables, theirs.eval()


# Traces or compiles whole networks.
@pytest.mark.slow
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


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.parity
def test_logits_and_gradients():
  model, variables, theirs = _pair("maxvit_tiny_tf_224", seed=0)
  images = parity_helper.random_images(1, 224)
  (logits, ours), (expected, gradients) = parity_helper.logits_and_gradients(
    model, variables, theirs, images
  )
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  for name, gradient in gradients.items():
    _assert_close(name, ours[name], gradient)


def _assert_close(name, value, expected):
  """Compares gradients, whose sizes differ by orders from name to name."""
  error = np.abs(value - expected).max()
  assert error < 2e-4 * np.abs(expected).max() + 1e-6, name


@pytest.mark.parity
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xlarge"])
def test_depths_are_timm_s(size):
  torch, timm = parity_helper.import_timm()
  name = f"maxvit_{size}_tf_224"
  with torch.device("meta"):
    theirs = timm.create_model(name)
  depths = tuple(len(stage.blocks) for stage in theirs.stages)
  assert models.create(name).depths == depths


# A network of the published depth.
@pytest.mark.slow
@pytest.mark.parity
def test_golden_logits_are_timm_s():
  stored = np.load(make_golden.PATH)["logits"]
  np.testing.assert_allclose(make_golden.timm_logits(), stored, atol=1e-5)


# A network of the published depth.
@pytest.mark.slow
def test_golden_logits():
  """For those without timm: what it said of weights drawn by numpy."""
  assert pathlib.Path(make_golden.PATH).stat().st_size < 50_000
  model, variables, images = make_golden.inputs()
  stored = np.load(make_golden.PATH)["logits"]
  apply = jax.jit(model.apply)
  np.testing.assert_allclose(apply(variables, images), stored, atol=1e-5)
  # They depend on every kind of variable, or else this could not fail.
  flat = traverse_util.flatten_dict(variables)
  for leaf in ("kernel", "bias", "relative_bias_table", "scale", "mean", "var"):
    changed = {
      path: value * 1.05 if path[-1] == leaf else value
      for path, value in flat.items()
    }
    logits = apply(traverse_util.unflatten_dict(changed), images)
    assert np.abs(logits - stored).max() > 1e-4, leaf
