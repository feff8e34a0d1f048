"""Trunks with probes: counts, what is read, weights of the trunk, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import tasks
from configs import digits
from models import pretrained, probed, taps
from models.probed import Probed
from tests import parity_helper
from tests.models import test_patch_mixers
from tools import absent_data
from training import paths

SMALL_VIT = {
  "patch_size": 4,
  "width": 16,
  "depth": 2,
  "heads": 2,
  "hidden_width": 24,
  "image_size": 8,
  "normalized_features": False,
}
_WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280}
# The classifier's and efficient probing's, D^2 + 32 D; and the statistics.
COUNTS = {
  f"probed_{name}": (total + width**2 + 32 * width, 2 * width)
  for name, (total, _) in test_patch_mixers.COUNTS.items()
  if name.startswith("vit")
  for width in [_WIDTHS[name.split("_")[1]]]
}


def _model(**fields):
  options = {"queries": 4} if "probe" not in fields else {}
  small = {
    "backbone_options": SMALL_VIT,
    "probe_options": options,
    "num_classes": 5,
  }
  return Probed(**{**small, **fields})


@functools.cache
def _shapes(model, size=8):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
  assert set(COUNTS) == set(probed.VARIANTS)
  model = models.create(name)
  depth = models.create(model.backbone).depth
  # All blocks have the same shapes.
  shallow = model.clone(backbone_options={"depth": 1})
  shapes = _shapes(shallow, shallow.size_multiple)
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  block = size(shapes["params"]["trunk"]["block_0"])
  total = size(shapes["params"]) + (depth - 1) * block
  assert (total, size(shapes["batch_stats"])) == COUNTS[name]


def test_the_probe_reads_what_the_trunk_gives():
  model = _model()
  variables = parity_helper.randomise(_shapes(model), seed=0)
  images = parity_helper.random_images(2, 8)

  @jax.jit
  def run(variables, images):
    maps = model.apply(variables, images, method="features")
    trunk = models.create(model.backbone, num_classes=0, **SMALL_VIT)
    expected = trunk.apply(
      {"params": variables["params"]["trunk"]}, images, method="features"
    )
    logits, values = taps.read(
      model, variables, images, names=["head/pool/attention_weights"]
    )
    return maps, expected, logits, values

  maps, expected, logits, values = run(variables, images)
  assert logits.shape == (2, 5)
  (weights,) = values.values()
  assert weights.shape == (2, 1, 4, 4)
  jax.tree.map(np.testing.assert_array_equal, maps, expected[:0:-1])


def test_any_trunk_and_any_of_its_maps():
  resnet = {
    "backbone": "resnet18",
    "backbone_options": {
      "depths": (1, 1),
      "widths": (4, 8),
      "stem_widths": (4, 4, 4),
    },
  }
  for stage, width in ((-1, 8), (1, 4)):
    model = _model(**resnet, stage=stage, probe="simpool")
    assert model.size_multiple == 8
    shapes = _shapes(model, 16)["params"]
    assert shapes["head"]["logits"]["kernel"].shape == (width, 5)
    assert shapes["trunk"]["stage_1"]


@pytest.mark.parametrize("probe", ["ep", "cls"])
def test_a_frozen_trunk_leaves_the_probe_to_train(probe):
  config = digits.get_config("tiny")
  config.model = {
    "name": "probed_vit_tiny_16_224",
    "backbone_options": {**SMALL_VIT, "image_size": 16},
    "probe": probe,
    "probe_options": {"queries": 4} if probe == "ep" else {},
  }
  config.frozen_trunk = True
  task = tasks.create(config, absent_data.info(config))
  names = paths.flatten_with_names(
    jax.eval_shape(task.init, jax.random.key(0))["params"]
  )
  trainable = task.trainable()
  pool = (
    {"head/pool/queries", "head/pool/value_kernel"} if probe == "ep" else set()
  )
  logits = {"head/logits/kernel", "head/logits/bias"}
  assert {name for name in names if trainable(name)} == pool | logits


def test_weights_of_a_trunk_are_those_of_its_classifier(tmp_path):
  """As timm's files, of which the logits are left out."""
  safetensors = pytest.importorskip("safetensors.numpy")
  trunk = models.create("vit_tiny_16_224", num_classes=7, **SMALL_VIT)
  theirs = parity_helper.randomise(_shapes(trunk), seed=3)
  path = str(tmp_path / "trunk.safetensors")
  safetensors.save_file(pretrained.to_tensors(theirs, trunk), path)
  model = _model()
  loaded = pretrained.load(path, model, part="trunk")
  wanted = dict(theirs["params"])
  del wanted["head"]
  jax.tree.map(np.testing.assert_array_equal, loaded["params"]["trunk"], wanted)
  assert loaded["params"]["head"]["pool"]["queries"].shape == (4, 16)
  # And the whole model goes through a file.
  again = pretrained.from_tensors(pretrained.to_tensors(loaded, model), model)
  jax.tree.map(np.testing.assert_array_equal, again, loaded)


def test_errors_say_what_would_fit():
  with pytest.raises(ValueError, match=r"stage is 2; vit_base.* has 2 maps"):
    _shapes(_model(stage=2))
  with pytest.raises(ValueError, match="backbone is 'gpt2', which is no model"):
    _shapes(_model(backbone="gpt2"))
  with pytest.raises(ValueError, match="'ep_all' reads the class token"):
    _shapes(
      _model(backbone="resnet18", backbone_options={}, probe="ep_all"), 32
    )
