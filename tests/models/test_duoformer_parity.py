"""DuoFormer against its golden numbers and a second statement in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import duoformer, duoformer_tokens, pretrained
from models.weight_maps import duoformer as duoformer_map
from tests import parity_helper
from tests.models import duoformer_torch

DTYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}
BLOCK = functools.partial(duoformer.Block, 4, 0.0)
SIZES = {"width": 24, "heads": 3, "scale_depth": 2, "patch_depth": 2}
TRUNK = {
  "depths": (1,) * 4,
  "widths": (8, 16, 24, 32),
  "stem_widths": (64,) * 3,
}
TIMM_TRUNK = {"layers": (1,) * 4, "channels": TRUNK["widths"]}
CASES = {
  "two scales": {"stages": (3, 2)},
  "four scales": {"stages": (3, 2, 1, 0), "patch_block": "vit"},
  "channel token": {
    "stages": (3, 2),
    "scale_token": "channel",
    "apply_final_norm": True,
  },
  "released": {"stages": (2, 1), "scale_token": "none", "released": True},
}


def wave(shape, phase, amplitude=1.0):
  """amplitude * sin(0.7 n + phase), n = 1, 2, ... in row-major order."""
  n = np.arange(1, np.prod(shape) + 1)
  return (amplitude * np.sin(0.7 * n + phase)).reshape(shape)


def golden_params(module, x):
  """Parameters whose values follow from their PyTorch names."""
  init = functools.partial(module.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), x)
  params = {}
  for path, wanted in traverse_util.flatten_dict(shapes["params"]).items():
    name = duoformer_map.block_name(path)
    # The last two parts of a path decide; outside a model there may be one.
    layout = duoformer_map.layout(("", *path))
    tensor = wave(layout.shape(wanted.shape), len(name) % 7, 0.2)
    if path[-1] == "scale":
      tensor += 1
    params[path] = layout.load(tensor, wanted.shape)
  return traverse_util.unflatten_dict(params)


def run_golden(module, x):
  x = jnp.asarray(x, jnp.float32)
  params = golden_params(module, x)
  return np.asarray(module.apply({"params": params}, x, False), np.float64)


def test_golden_scale_block():
  block = BLOCK(heads=2, implementation="xla", **DTYPES)
  y = run_golden(block, wave((1, 2, 3, 8), 0))
  assert y.sum() == pytest.approx(3.0500937, abs=1e-5)
  np.testing.assert_allclose(
    y[0, 0, 0, :4],
    [1.35412287, -0.99787682, 1.93480466, -1.10845959],
    rtol=2e-6,
  )
  np.testing.assert_allclose(
    y[0, 1, 2, -2:], [1.58708836, -1.11111938], rtol=2e-6
  )


def test_golden_patch_layer():
  layer = duoformer.SelfAttention(heads=2, implementation="xla", **DTYPES)
  y = run_golden(layer, wave((1, 50, 8), 0))
  assert y.sum() == pytest.approx(2.66415822, abs=1e-5)
  np.testing.assert_allclose(
    y[0, 0, :4],
    [-0.246720083, -0.156562603, -0.000356206357, 0.152307364],
    rtol=2e-6,
    atol=1e-8,
  )


def test_golden_first_patch_layer():
  patches = jnp.asarray(wave((1, 49, 6, 8), 0)[:, :, 0], jnp.float32)
  params = {"class_token": wave((8,), 1), "position": wave((50, 8), 2, 0.1)}
  x = duoformer_tokens.PatchTokens(7, jnp.float32).apply(
    {"params": params}, patches, (7, 7)
  )
  layer = duoformer.SelfAttention(heads=2, implementation="xla", **DTYPES)
  y = run_golden(layer, x)
  assert y.sum() == pytest.approx(5.27154934, abs=1e-5)
  np.testing.assert_allclose(
    y[0, 0, :4],
    [-0.145836105, 0.0338622626, 0.194133873, 0.263562237],
    rtol=2e-6,
  )


def _pair(fields):
  model = duoformer.DuoFormer(
    backbone="resnet18",
    backbone_options=TRUNK,
    image_size=64,
    num_classes=5,
    **SIZES,
    **fields,
  )
  theirs = duoformer_torch.create(model, TIMM_TRUNK)
  variables = parity_helper.random_variables(model, seed=0)
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  return model, variables, theirs.eval()


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(case):
  model, variables, theirs = _pair(CASES[case])
  images = parity_helper.random_images(2, 64)
  (logits, ours), (expected, gradients) = parity_helper.logits_and_gradients(
    model, variables, theirs, images
  )
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  unused = set()
  for name, gradient in gradients.items():
    if gradient is None:
      np.testing.assert_array_equal(ours[name], 0)
      unused.add(name.rsplit(".", 1)[0])
    else:
      _assert_close(name, ours[name], gradient)
  norm = set() if model.apply_final_norm else {"head.norm"}
  assert {name for name in unused if "layer4" not in name} == norm
  assert (unused == norm) == (3 in model.stages)


def _assert_close(name, value, expected):
  """Compares gradients, whose sizes differ by orders from name to name."""
  error = np.abs(value - expected).max()
  assert error < 2e-4 * np.abs(expected).max() + 1e-6, name


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.parity
def test_trunk_from_a_published_file(tmp_path):
  """A ResNet-18 as torchvision and timm store it, its classifier ignored."""
  torch, timm = parity_helper.import_timm()
  safetensors = pytest.importorskip("safetensors.torch")
  torch.manual_seed(0)
  theirs = timm.create_model("resnet18").eval()
  path = str(tmp_path / "resnet18.safetensors")
  safetensors.save_file(theirs.state_dict(), path)
  model = duoformer.DuoFormer(backbone="resnet18", num_classes=5, **SIZES)
  variables = pretrained.load(path, model, part="trunk")
  images = parity_helper.random_images(1, 64)
  with torch.inference_mode():
    last = theirs.forward_features(
      torch.from_numpy(images).permute(0, 3, 1, 2)
    ).permute(0, 2, 3, 1)
  maps = jax.jit(functools.partial(model.apply, method="features"))(
    variables, images
  )
  np.testing.assert_allclose(maps[-1], last.numpy(), atol=1e-4)
  kernel = variables["params"]["head"]["logits"]["kernel"]
  assert kernel.shape == (24, 5)
  assert 0.01 < kernel.std() < 0.03
