"""SPAN: counts, folding, borders, precision, files, errors, its right value."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from safetensors import numpy as safetensors

import models
from models import pretrained, restoration_layers, span, taps
from models.span import FoldedConv, Span
from tests import parity_helper

# Of the forms "deploy" and "train", as counted from the authors' modules.
COUNTS = {
  "span_c26_x4": (130_828, 547_944),
  "span_c28_x4": (150_688, 634_048),
  "span_c48_x2": (410_700, 1_824_900),
  "span_c48_x3": (417_195, 1_831_395),
  "span_c48_x4": (426_288, 1_840_488),
  "span_c52_x2": (481_324, 2_140_252),
  "span_c52_x3": (488_359, 2_147_287),
  "span_c52_x4": (498_208, 2_157_136),
}
SHARED = pathlib.Path(__file__).parents[3] / "shared/data"
SIZE = (2, 17, 13, 3)


def _shapes(model):
  image = jax.ShapeDtypeStruct((1, 4, 5, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _images(*shape):
  return np.random.default_rng(1).random(shape or SIZE, np.float32)


def _apply(model, variables, images):
  return jax.jit(model.apply)(variables, images)


@pytest.fixture(scope="module")
def small():
  """A model of the form "train", variables of it, and what it returns."""
  model = Span(channels=6, scale=3, blocks=2)
  variables = parity_helper.randomise(_shapes(model), seed=0)
  return model, variables, _apply(model, variables, _images())


def test_counts():
  assert set(COUNTS) == set(span.VARIANTS)
  for name, expected in COUNTS.items():
    for form, count in zip(("deploy", "train"), expected, strict=True):
      # Blocks are alike, so two of them tell what each has.
      shapes = _shapes(models.create(name, form=form, blocks=1))["params"]
      sizes = {
        part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for part, tree in shapes.items()
      }
      assert sum(sizes.values()) + 5 * sizes["block_1"] == count, name


def test_the_folded_filter_is_the_branches_borders_included():
  conv = FoldedConv(5, 2, "train", jnp.float32, jnp.float32)
  x = _images(1, 6, 7, 4)
  shapes = jax.eval_shape(conv.init, jax.random.key(0), x)
  variables = parity_helper.randomise(shapes, seed=2)
  branches = jax.tree.map(np.float64, variables["params"])
  dense = lambda name, x: x @ branches[name]["kernel"] + branches[name]["bias"]
  # The edge is padded before the first of them, which has a bias.
  wide = dense("expand", np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
  middle = branches["filter"]["bias"] + sum(
    wide[:, i : i + 6, j : j + 7] @ branches["filter"]["kernel"][i, j]
    for i in range(3)
    for j in range(3)
  )
  expected = dense("shrink", middle) + dense("skip", x)
  out = _apply(conv, variables, x)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_the_deploy_form_is_the_same_function(small):
  model, variables, expected = small
  assert expected.shape == (2, 51, 39, 3)
  assert expected.dtype == jnp.float32
  folded = {"params": jax.jit(span.fold)(variables["params"])}
  deploy = model.clone(form="deploy")
  shapes = jax.tree.map(jnp.shape, _shapes(deploy))
  assert jax.tree.map(jnp.shape, folded) == shapes
  out = _apply(deploy, folded, _images())
  # On values of about a hundred.
  scale = jnp.abs(expected).max()
  np.testing.assert_allclose(out / scale, expected / scale, atol=1e-5)
  with pytest.raises(ValueError, match="of the form 'deploy' already"):
    span.fold(folded["params"])


def test_the_gate_is_odd_and_less_than_a_half(small):
  model, variables, _ = small
  read = functools.partial(taps.read, model, names=["block_2/*"])
  _, values = jax.jit(read)(variables, _images())
  attention = values["block_2/attention"]
  assert attention.shape == (2, 17, 13, 6)
  assert 0.1 < jnp.abs(attention).max() <= 0.5
  assert values["block_2/hidden_state"].shape == attention.shape


def test_blocks_without_the_gate_are_plain_residual_ones():
  model = Span(channels=4, scale=2, blocks=1, form="deploy", gated=False)
  variables = parity_helper.randomise(_shapes(model), seed=0)
  names = ["block_1/hidden_state"]
  read = functools.partial(taps.read, model, names=names)
  # With nothing but a bias in its last convolution, a block adds that.
  last = variables["params"]["block_1"]["conv_3"]
  last["kernel"] = np.zeros_like(last["kernel"])
  _, values = read(variables, _images(1, 4, 5, 3))
  (out,) = values.values()
  first = variables["params"]["conv_1"]
  conv = FoldedConv(4, 2, "deploy", jnp.float32, jnp.float32)
  inputs = (_images(1, 4, 5, 3) - np.float32(restoration_layers.RGB_MEAN)) * 255
  expected = conv.apply({"params": first}, inputs)
  expected += last["bias"][None, None, None]
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


def test_half_precision_and_remat(small):
  model, variables, expected = small
  half = _apply(model.clone(dtype="bfloat16"), variables, _images())
  assert half.dtype == jnp.float32
  error = jnp.abs(half - expected).max() / jnp.abs(expected).max()
  assert 0 < error < 0.05

  def gradient(model):
    loss = lambda v: (model.apply(v, _images(1, 4, 5, 3)) ** 2).mean()
    return jax.jit(jax.grad(loss))(variables)

  again = gradient(model.clone(remat=True))
  for ours, theirs in zip(
    jax.tree.leaves(again), jax.tree.leaves(gradient(model)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
  ("fields", "images", "message"),
  [
    ({"form": "folded"}, SIZE, "form is 'folded'; it must be one of"),
    ({"channels": 0}, SIZE, "channels is 0; it must be 1 or more"),
    ({"gain": 0}, SIZE, "gain is 0; it must be 1 or more"),
    ({}, (1, 4, 4, 1), "needs 3 channels"),
    ({}, (4, 4, 3), "must be floating point"),
  ],
)
def test_errors(fields, images, message):
  model = Span(**{"channels": 4, "blocks": 1, **fields})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(images))


def test_files_of_both_layouts(small, tmp_path):
  model, variables, _ = small
  tensors = pretrained.to_tensors(variables, model)
  assert tensors["block_2.c3_r.conv.1.weight"].shape == (12, 12, 3, 3)
  assert tensors["conv_1.sk.weight"].shape == (6, 3, 1, 1)
  # What the authors' code keeps beside them, and makes again when it is called.
  stale = {"conv_1.eval_conv.weight": np.zeros((6, 3, 3, 3), np.float32)}
  path = tmp_path / "train.safetensors"
  safetensors.save_file({**tensors, **stale}, path)
  loaded = pretrained.load(path, model)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  deploy = model.clone(form="deploy")
  folded = pretrained.load(path, deploy)
  wanted = span.fold(variables["params"])
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, folded["params"], wanted)

  alone = pretrained.to_tensors(folded, deploy)
  assert alone["block_1.c2_r.eval_conv.weight"].shape == (6, 6, 3, 3)
  again = pretrained.from_tensors(alone, deploy)
  jax.tree.map(np.testing.assert_array_equal, again, folded)
  with pytest.raises(ValueError, match="use form='deploy'"):
    pretrained.from_tensors(alone, model)
  del tensors["block_1.c1_r.conv.2.bias"]
  missing = r"missing: block_1\.c1_r\.eval_conv\.weight"
  with pytest.raises(ValueError, match=missing):
    pretrained.from_tensors(tensors, deploy)


def test_pixels_are_shuffled_as_pytorch_does():
  x = np.arange(2 * 3 * 4 * 18.0).reshape(2, 3, 4, 18)
  out = np.asarray(restoration_layers.pixel_shuffle(jnp.asarray(x), 3))
  for channel, row, column in ((0, 1, 2), (1, 2, 0)):
    place = 9 * channel + 3 * row + column
    np.testing.assert_array_equal(
      out[:, row::3, column::3, channel], x[..., place]
    )
  back = restoration_layers.pixel_unshuffle(jnp.asarray(out), 3)
  np.testing.assert_array_equal(back, x)
  with pytest.raises(ValueError, match="scale is 4 and x has 18 channels"):
    restoration_layers.pixel_shuffle(jnp.asarray(x), 4)
  with pytest.raises(ValueError, match="scale is 2, which must divide the 3 x"):
    restoration_layers.pixel_unshuffle(jnp.asarray(x), 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_released_network_has_its_right_value(dtype):
  weights = SHARED / "span/span_ch28_x4.safetensors"
  image = SHARED / "super_resolution/Set5/x4/img_003"
  if not weights.exists() or not image.parent.exists():
    pytest.skip("shared/data has no span or super_resolution")
  low, high = (
    np.asarray(PIL.Image.open(f"{image}_{kind}.png").convert("RGB"))
    for kind in ("LR", "HR")
  )
  model = models.create("span_c28_x4", form="deploy", dtype=dtype)
  out = _apply(model, pretrained.load(weights, model), low[None] / 255.0)
  # Y of 8-bit RGB, in 16 to 235, without the four pixels of the border.
  out = np.round(255 * np.clip(np.asarray(out[0], np.float64), 0, 1))
  weigh = np.array([65.481, 128.553, 24.966]) / 255
  error = ((out - high) @ weigh)[4:-4, 4:-4]
  psnr = 10 * np.log10(255**2 / (error**2).mean())
  # The butterfly's, of the network in PyTorch; half precision costs a little.
  print(dtype, psnr)
  assert psnr == pytest.approx(27.83, abs=0.006 if dtype == "float32" else 0.1)
