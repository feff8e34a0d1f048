"""HAT: counts, sizes, precision, dropping, files, errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import models
from input_pipeline.restoration import imresize
from models import hat, pretrained, taps
from models.hat import HAT
from models.weight_maps import hat as hat_weights
from tests import parity_helper

# Parameters, as counted from the authors' modules.
COUNTS = {
  "hat_s_x2": 9_473_471,
  "hat_s_x3": 9_658_111,
  "hat_s_x4": 9_621_183,
  "hat_x2": 20_624_795,
  "hat_x3": 20_809_435,
  "hat_x4": 20_772_507,
  "hat_l_x2": 40_698_863,
  "hat_l_x3": 40_883_503,
  "hat_l_x4": 40_846_575,
}
FIELDS = {
  "width": 8,
  "scale": 2,
  "depths": (2,),
  "heads": 2,
  "window_size": 4,
  "halo_size": 1,
  "mlp_width": 16,
  "conv_width": 4,
  "gate_width": 2,
  "upsample_width": 8,
  "conv_scale": 0.2,
  "image_range": 1.0,
}


def _shapes(model):
  side = model.window_size
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _images(*shape):
  return np.random.default_rng(1).random(shape, np.float32)


@pytest.fixture(scope="module")
def small():
  """A model, variables of it, and what it makes of a wide image."""
  model = HAT(**FIELDS)
  variables = parity_helper.randomise(_shapes(model), seed=0)
  return model, variables, jax.jit(model.apply)(variables, _images(2, 8, 12, 3))


def _zeros(tree):
  return jax.tree.map(np.zeros_like, tree)


def _size(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_counts():
  assert set(COUNTS) == set(hat.VARIANTS)
  for name, count in COUNTS.items():
    model = models.create(name)
    # Groups are alike, and so are the blocks of one.
    shapes = _shapes(model.clone(depths=(1,)))["params"]
    block = _size(shapes["group_0"]["block_0"])
    group = _size(shapes["group_0"]) - block
    groups, blocks = len(model.depths), sum(model.depths)
    rest = _size(shapes) - group - block
    assert rest + groups * group + blocks * block == count, name


def test_wide_images_half_precision_and_values(small):
  model, variables, expected = small
  assert expected.shape == (2, 16, 24, 3)
  assert expected.dtype == jnp.float32
  half = model.clone(dtype="bfloat16", remat=True)
  names = ["group_0/*/attention_weights"]
  read = functools.partial(taps.read, half, names=names)
  out, values = jax.jit(read)(variables, _images(2, 8, 12, 3))
  assert out.dtype == jnp.float32
  assert 0 < jnp.abs(out - expected).max() < 0.05
  shapes = {name.split("/")[1]: v.shape for name, v in values.items()}
  # Windows of 4 x 4, and those with one more around.
  assert shapes == {
    "block_0": (2, 6, 2, 16, 16),
    "block_1": (2, 6, 2, 16, 16),
    "overlapping": (2, 2, 3, 2, 16, 36),
  }


def test_every_other_block_shifts_its_windows(small):
  model, variables, _ = small

  def of_own_pixel(x):
    """Convolutions that see their own pixel alone."""
    if x.ndim != 4 or x.shape[:2] != (3, 3):
      return x
    middle = np.indices((3, 3)) == 1
    return x * middle.all(0)[..., None, None]

  params = jax.tree.map(of_own_pixel, variables["params"])
  group = params["group_0"]
  group["overlapping"]["out"] = _zeros(group["overlapping"]["out"])
  # The gate of channels sees all of the image.
  for block in ("block_0", "block_1"):
    group[block]["conv"]["expand"] = _zeros(group[block]["conv"]["expand"])

  @jax.jit
  @functools.partial(jax.grad, argnums=1)
  def gradient(params, image):
    return model.apply({"params": params}, image)[0, 4, 4].sum()

  seen = jnp.abs(gradient(params, _images(1, 12, 12, 3))[0]).sum(-1) > 0
  # It comes from pixel (2, 2), of the window from (2, 2) to (5, 5) once they
  # are shifted, whose pixels saw the four windows that they lie in.
  rows, columns = np.indices((12, 12)) < 8
  np.testing.assert_array_equal(seen, rows & columns)


def test_a_residual_network_begins_with_what_bicubic_interpolation_makes(small):
  model, variables, _ = small
  params = dict(variables["params"])
  params["last"] = _zeros(params["last"])
  residual = model.clone(residual=True, scale=2)
  image = _images(1, 8, 8, 3)
  out = jax.jit(residual.apply)({"params": params}, image)
  expected = imresize(image[0].astype(np.float64), 2)
  # At the edge MATLAB's repeats pixels, which ours leaves out.
  inner = (slice(4, -4), slice(4, -4))
  np.testing.assert_allclose(out[0][inner], expected[inner], atol=1e-5)


def test_branches_are_dropped_but_for_the_convolution(small):
  model, variables, expected = small
  images = _images(2, 8, 12, 3)
  drop = model.clone(stochastic_depth_rate=0.5)

  @jax.jit
  def train(variables, key):
    return drop.apply(variables, images, train=True, rngs={"dropout": key})

  outs = jnp.stack([train(variables, jax.random.key(i)) for i in range(4)])
  assert jnp.abs(outs - outs[0][None]).max() > 1e-3
  out = jax.jit(drop.apply)(variables, images)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_file_says_its_sizes_but_not_all(small, tmp_path):
  model, variables, _ = small
  tensors = pretrained.to_tensors(variables, model)
  stored = {**tensors, **hat_weights.constants(model)}
  index = stored["relative_position_index_OCA"]
  # They count from the end of the table where they are negative.
  assert len(np.unique(index % 81)) == index.max() - index.min() + 1 == 81
  assert index.min() < 0
  path = tmp_path / "hat.safetensors"
  safetensors.save_file(stored, path)
  scales = {"conv_scale": 0.2, "image_range": 1.0}
  found, loaded = hat_weights.load(path, **scales, stochastic_depth_rate=0.1)
  assert found == model
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  with pytest.raises(TypeError, match="conv_scale"):
    hat_weights.load(path, image_range=1.0)
  stored["relative_position_index_OCA"] = index.T.copy().reshape(index.shape)
  with pytest.raises(ValueError, match="is not the table that the model"):
    pretrained.from_tensors(stored, model)
  del stored["relative_position_index_SA"]
  safetensors.save_file(stored, path)
  with pytest.raises(ValueError, match="missing: relative_position_index_SA"):
    hat_weights.load(path, **scales)


@pytest.mark.parametrize(
  ("fields", "images", "message"),
  [
    ({"conv_scale": None}, (1, 4, 4, 3), "conv_scale is None; no file of"),
    ({"image_range": None}, (1, 4, 4, 3), "the published networks have 1.0"),
    ({"image_range": 0.0}, (1, 4, 4, 3), "image_range is 0.0; it must be"),
    ({"scale": 5}, (1, 4, 4, 3), "scale is 5; it must be one of"),
    ({"heads": 3}, (1, 4, 4, 3), "heads is 3, which does not divide width=8"),
    ({"depths": ()}, (1, 4, 4, 3), "depths is"),
    ({"window_size": 1}, (1, 4, 4, 3), "window_size is 1 and halo_size 1"),
    ({"gate_width": 0}, (1, 4, 4, 3), "gate_width is 0; it must be 1 or more"),
    ({}, (1, 4, 6, 3), "x is 4 x 6; height and width must be multiples of 4"),
  ],
)
def test_errors(fields, images, message):
  model = HAT(**{**FIELDS, **fields})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(images))
