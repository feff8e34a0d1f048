"""DuoFormer against its golden numbers and a second statement in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import duoformer, pretrained
from models.weight_maps import duoformer as duoformer_map
from tests import parity_helper

DTYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}
BLOCK = functools.partial(duoformer.Block, 4, 0.0)


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
  x = duoformer.PatchTokens(7, jnp.float32).apply(
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
