"""HaloNets against timm's: logits of all, gradients of three."""

import jax
import numpy as np
import pytest

import models
from models import pretrained
from tests import parity_helper
from tests.models import small

pytestmark = pytest.mark.parity

NAMES = {
  "halonet_h1_timm": "halonet_h1",
  "halonet26t": "halonet26t",
  "sehalonet33ts": "sehalonet33ts",
  "halonet50ts": "halonet50ts",
  "eca_halonext26ts": "eca_halonext26ts",
  "haloregnetz_b": "haloregnetz_b",
  "halo2botnet50ts_256": "halo2botnet50ts_256",
}
# Their activations are smooth: with ReLU gradients in float32 differ wherever
# an input is almost 0.
SMOOTH = ("sehalonet33ts", "halonet50ts", "eca_halonext26ts")


def _pair(name):
  """Returns our model, its random variables, and timm's with the same."""
  torch, timm = parity_helper.import_timm()
  model = models.create(name)
  variables = parity_helper.random_variables(model, seed=1)
  # Skips timm's own initialisation, which takes longer than all else.
  with torch.device("meta"):
    theirs = timm.create_model(NAMES[name])
  theirs = theirs.to_empty(device="cpu")
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  return model, variables, theirs.eval()


# Networks of up to 50 layers: timm has no shallow ones of their layouts.
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n not in SMOOTH])
def test_logits(name):
  model, variables, theirs = _pair(name)
  images = parity_helper.random_images(1, models.image_size(name))
  expected = parity_helper.timm_logits(theirs, images)
  logits = small.apply(model, variables, images)
  assert expected.std() > 0.3
  np.testing.assert_allclose(logits, expected, atol=1e-4)


# Networks of up to 50 layers: timm has no shallow ones of their layouts.
@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_logits_and_gradients(name):
  model, variables, theirs = _pair(name)
  images = parity_helper.random_images(1, models.image_size(name))
  (logits, ours), (expected, gradients) = parity_helper.logits_and_gradients(
    model, variables, theirs, images
  )
  assert expected.std() > 0.3
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  for path, gradient in gradients.items():
    _assert_close(path, ours[path], gradient)


def _assert_close(name, value, expected):
  """Compares gradients, whose sizes differ by orders from name to name."""
  # As a whole: where two pixels are almost equal, max pooling may choose
  # another one.
  error = np.linalg.norm(value - expected)
  assert error < 1e-3 * np.linalg.norm(expected) + 1e-6, name


def test_weights_round_trip():
  """Of blocks of every kind, with both kinds of channel attention."""
  for fields in (
    {"layout": (("conv", "halo"), ("global",)), "channel_attention": "se"},
    {
      "layout": (("conv",), ("halo",)),
      "channel_attention": "eca",
      "stem": "tiered",
      "shortcut": "average_pool",
      "final_width": 8,
    },
  ):
    model = models.create(
      "halonet_h1_timm",
      widths=(16, 32),
      bottleneck_widths=(8, 16),
      strides=(1, 2),
      heads=(2, 4),
      image_size=32,
      num_classes=5,
      **fields,
    )
    variables = parity_helper.random_variables(model, 0)
    tensors = pretrained.to_tensors(variables, model)
    assert len(tensors) == len(jax.tree.leaves(variables))
    loaded = pretrained.from_tensors(tensors, model)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
