"""ResNet-RS and plain ResNets against timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import pretrained
from models.resnet import VARIANTS
from tests import parity_helper
from tests.models import small

pytestmark = pytest.mark.parity


def _pair(name, seed, fields=None, **options):
  """Returns our model, its random variables, and timm's with the same."""
  torch, timm = parity_helper.import_timm()
  model = models.create(name, **(fields or {}))
  variables = parity_helper.random_variables(model, seed)
  # Skips timm's own initialisation, which takes longer than all else.
  with torch.device("meta"):
    theirs = timm.create_model(name, **options)
  theirs = theirs.to_empty(device="cpu")
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  return model, variables, theirs.eval()


# Networks of the published depths.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "size"),
  [
    ("resnet18", 64),
    ("resnet26", 64),
    # Maps of 53, 27, 14, 7 and 4 pixels, and of 35, 18, 9, 5 and 3.
    ("resnetrs50", 105),
    ("resnet18", 69),
  ],
)
def test_logits(name, size):
  model, variables, theirs = _pair(name, seed=1)
  images = parity_helper.random_images(1, size)
  expected = parity_helper.timm_logits(theirs, images)
  logits = small.apply(model, variables, images)
  assert expected.std() > 0.3
  np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in VARIANTS if "_" not in n])
def test_depths_are_timm_s(name):
  """So deeper networks than those whose logits are compared are theirs too."""
  torch, timm = parity_helper.import_timm()
  with torch.device("meta"):
    theirs = timm.create_model(name)
  stages = (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
  model = models.create(name)
  assert model.depths == tuple(map(len, stages))
  blocks = {"BasicBlock": "basic", "Bottleneck": "bottleneck"}
  assert model.block == blocks[type(stages[0][0]).__name__]


@pytest.mark.parametrize(
  ("fields", "options"),
  [
    ({"activation": "swish"}, {"act_layer": "silu"}),
    ({"stem": "deep_max_pool"}, {"replace_stem_pool": False}),
    ({"shortcut": "conv"}, {"avg_down": False}),
    ({"squeeze_ratio": 0.0}, {"block_args": {}}),
  ],
  ids=["swish", "max_pool", "shortcut", "no_se"],
)
def test_fields(fields, options):
  """Each against timm's option of the same meaning, in a shallow network."""
  depths = (1, 2, 1, 1)
  model, variables, theirs = _pair(
    "resnetrs50", 3, {"depths": depths, **fields}, layers=depths, **options
  )
  images = parity_helper.random_images(1, 45)
  expected = parity_helper.timm_logits(theirs, images)
  logits = small.apply(model, variables, images)
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits, expected, atol=1e-4)


# Traces or compiles whole networks.
@pytest.mark.slow
def test_gradients():
  """In float64: in float32 a ReLU whose input is almost 0 may differ."""
  torch, _ = parity_helper.import_timm()
  depths = (1, 2, 1, 1)
  model, variables, theirs = _pair(
    "resnetrs50", 0, {"depths": depths}, layers=depths
  )
  theirs = theirs.double()
  images = parity_helper.random_images(2, 64).astype(np.float64)
  direction = np.random.default_rng(2).standard_normal((2, 1000), np.float32)

  batch = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
  (theirs(batch) * torch.from_numpy(direction)).sum().backward()

  with jax.enable_x64(True):
    model = model.clone(dtype=jnp.float64, param_dtype=jnp.float64)
    variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)

    def loss(params, images):
      logits = model.apply({**variables, "params": params}, images)
      return jnp.sum(logits * direction)

    grads, image_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(
      variables["params"], images
    )
  image_grad = np.asarray(image_grad)
  _assert_close("images", image_grad, batch.grad.permute(0, 2, 3, 1).numpy())
  ours = pretrained.to_tensors({"params": grads}, model)
  named = dict(theirs.named_parameters())
  assert ours.keys() == named.keys()
  for name, parameter in named.items():
    _assert_close(name, ours[name], parameter.grad.numpy())


def _assert_close(name, value, expected):
  """Compares gradients, whose sizes differ by orders from name to name."""
  error = np.abs(value - expected).max()
  assert expected.any(), name
  assert error < 1e-9 * np.abs(expected).max(), name


def test_linear_stochastic_depth_is_timm_s():
  _, timm = parity_helper.import_timm()
  torch = parity_helper.import_torch()
  with torch.device("meta"):
    theirs = timm.create_model("resnetrs101", drop_path_rate=0.2)
  expected = [
    [block.drop_path.drop_prob if block.drop_path else 0.0 for block in stage]
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
  ]
  model = models.create("resnetrs101", stochastic_depth_rate=0.2)
  for ours, stage in zip(model.stochastic_depth_rates, expected, strict=True):
    np.testing.assert_allclose(ours, stage, atol=1e-9)


@pytest.mark.parametrize(
  "fields",
  [
    {"block": "basic", "stem": "conv7", "shortcut": "conv"},
    {"block": "bottleneck", "stem": "deep", "shortcut": "average_pool"},
  ],
  ids=["basic", "bottleneck"],
)
def test_weights_round_trip(fields, tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  options = {"depths": (1, 2), "widths": (8, 16), "stem_widths": (8, 8, 16)}
  model = models.create("resnetrs50", num_classes=5, **options, **fields)
  variables = parity_helper.random_variables(model, 0)
  tensors = pretrained.to_tensors(variables, model)
  assert len(tensors) == len(jax.tree.leaves(variables))
  path = tmp_path / "model.safetensors"
  safetensors.save_file(tensors, path)
  loaded = pretrained.load(path, model)
  assert jax.tree.structure(loaded) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
