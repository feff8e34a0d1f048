"""Restormer and MTAIR: counts, names, what they are at first, bad input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import mtair, pretrained, state_space, taps
from tests.models import mtair_small

# The first is of Restormer's code; the second is ours, see `_whole`.
COUNTS = {"restormer": 26_126_644, "mtair": 41_218_204}
# Of a block with so many channels and heads, of Restormer's code.
BLOCKS = {
  (48, 1): 31_279,
  (96, 2): 117_872,
  (192, 4): 456_352,
  (384, 8): 1_796_306,
}


PARTS = (
  *("encoder_0", "encoder_1", "encoder_2", "latent"),
  *("decoder_0", "decoder_1", "decoder_2", "refinement"),
)


@functools.cache
def shapes(name):
  """Of a model with one block of each kind, since blocks are alike."""
  fields = {"depths": (1, 1, 1, 1), "refinement_depth": 1}
  return mtair_small.shapes(models.create(name, **fields))["params"]


@pytest.mark.parametrize("name", COUNTS)
def test_totals(name):
  assert set(COUNTS) == set(mtair.VARIANTS)
  model = models.create(name)
  more = [n - 1 for n in (*model.depths, *model.depths[:-1])]
  more.append(model.refinement_depth - 1)
  total = mtair_small.count(shapes(name)) + sum(
    n * mtair_small.count(shapes(name)[part])
    for n, part in zip(more, PARTS, strict=True)
  )
  assert total == COUNTS[name]


@pytest.mark.parametrize(("width", "heads"), BLOCKS)
def test_counts_of_blocks(width, heads):
  parts = {48: "encoder_0", 96: "encoder_1", 192: "decoder_2", 384: "latent"}
  block = shapes("restormer")[parts[width]]["block_0"]
  assert mtair_small.count(block) == BLOCKS[width, heads]
  assert block["attention"]["temperature"].shape == (heads,)


def test_what_mtair_adds():
  """Each part counted by hand, so that the total of MTAIR is no accident."""
  assert COUNTS["mtair"] == COUNTS["restormer"] + _added()
  params = shapes("mtair")
  tensors = [
    math.prod(params[f"prompt_{i}"]["prompt"]["prompts"].shape)
    for i in range(4)
  ]
  # The published code's own tensors, if they are shaped as PromptIR's.
  assert tensors == [5_242_880, 2_621_440, 1_638_400, 409_600]
  scanned = [k for k, v in params.items() if "scan" in v.get("block_0", ())]
  assert sorted(scanned) == [
    f"{a}coder_{i}" for a in ("de", "en") for i in "01"
  ]


def _added():
  total = 0
  for width, blocks in ((48, 4), (96, 6), (96, 6), (96, 4)):
    total += blocks * (_scan(width) + 2 * width * width)
  prompts = ((48, 64, 128), (96, 128, 64), (192, 320, 32), (384, 320, 16))
  for width, inner, side in prompts:
    total += 5 * inner * side**2 + 5 * (width + 1) + 9 * inner**2
    total += inner * width + 2 * width + (2 * width + 1)
    total += 4 + 3 * width**2 + 9 * 3 * width + width**2
  return total


def _scan(width):
  d, rank, n = 2 * width, math.ceil(width / 16), 16
  into_and_out = width * 2 * d + d * width
  ways = 4 * (d * (rank + 2 * n) + rank * d + d + d * n + d)
  return into_and_out + 10 * d + ways + 2 * d


def test_names_of_restormer():
  """The names that its weights have, by the loops of its code."""
  names = {}
  model = models.create("restormer")
  weight_map = pretrained.weight_maps.of(model)
  for path, leaf in traverse_util.flatten_dict(shapes("restormer")).items():
    name, layout = weight_map(path)
    names[name] = layout.whole(leaf.shape)
  assert len(names) == 11 * len(PARTS) + 1 + 6 + 2 + 1
  assert names["patch_embed.proj.weight"] == (48, 3, 3, 3)
  assert names["encoder_level3.0.attn.temperature"] == (4, 1, 1)
  assert names["encoder_level2.0.attn.qkv_dwconv.weight"] == (288, 1, 3, 3)
  assert names["latent.0.norm2.body.bias"] == (384,)
  assert names["decoder_level1.0.ffn.project_in.weight"] == (510, 96, 1, 1)
  assert names["refinement.0.attn.project_out.weight"] == (96, 96, 1, 1)
  assert names["down1_2.body.0.weight"] == (24, 48, 3, 3)
  assert names["up4_3.body.0.weight"] == (768, 384, 3, 3)
  assert names["reduce_chan_level2.weight"] == (96, 192, 1, 1)
  assert "reduce_chan_level1.weight" not in names
  assert names["output.weight"] == (3, 96, 3, 3)


def test_it_is_the_identity_if_the_last_layer_is_zero():
  model, variables = mtair_small.model_and_variables()
  out = variables["params"]["out"]
  silent = {**variables["params"], "out": jax.tree.map(np.zeros_like, out)}
  images = mtair_small.IMAGES
  restored = mtair_small.apply(model)({"params": silent}, images)
  np.testing.assert_array_equal(restored, images)


def test_bfloat16_and_the_others_of_a_batch():
  model, variables = mtair_small.model_and_variables()
  images = mtair_small.IMAGES
  whole = mtair_small.apply(model)(variables, images)
  half = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images)
  assert whole.dtype == half.dtype == jnp.float32
  error = np.abs(half - whole).max() / np.abs(whole - images).max()
  assert 0 < error < 0.05
  # What an image becomes does not depend on the others of its batch.
  others = np.stack([1 - images[0], images[1]])
  beside = mtair_small.apply(model)(variables, others)
  np.testing.assert_array_equal(beside[1], whole[1])
  assert np.abs(beside[0] - whole[0]).max() > 0.1


def test_a_scan_turns_with_the_image():
  """Half a turn and transposition take each of the four ways to another one."""
  scan = state_space.ImageScan(states=3, chunk_size=7)
  x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype("f4")
  params = mtair_small.randomised(jax.eval_shape(scan.init, KEY, x))["params"]
  # The same filter whichever way it is turned.
  params["conv"]["kernel"][:] = params["conv"]["kernel"][:1, :1]
  apply = jax.jit(lambda ways, x: scan.apply({"params": ways}, x))
  plain = apply(params, x)
  half_turn = apply(_ways(params, [2, 3, 0, 1]), x[:, ::-1, ::-1])
  np.testing.assert_allclose(half_turn[:, ::-1, ::-1], plain, atol=1e-5)
  transposed = apply(_ways(params, [1, 0, 3, 2]), x.swapaxes(1, 2))
  np.testing.assert_allclose(transposed.swapaxes(1, 2), plain, atol=1e-5)
  assert np.abs(apply(params, x[:, ::-1])[:, ::-1] - plain).max() > 1e-2


KEY = jax.random.key(0)


def _ways(params, order):
  """The parameters of the ways in another order."""
  named = {k: params[k][order] for k in ("dt_kernel", "dt_bias", "a_log", "d")}
  kernel = params["x_proj"]["kernel"][:, order]
  return {**params, **named, "x_proj": {"kernel": kernel}}


def test_a_new_scan_takes_steps_as_mambas():
  scan = state_space.ImageScan()
  params = jax.jit(scan.init)(KEY, jnp.zeros((1, 1, 1, 32)))["params"]
  steps = jax.nn.softplus(params["dt_bias"])
  assert 1e-3 * 0.99 < steps.min() < 2e-3
  assert 0.05 < steps.max() < 0.1 * 1.01
  counts = np.broadcast_to(np.arange(1, 17), (4, 64, 16))
  np.testing.assert_allclose(np.exp(params["a_log"]), counts, rtol=1e-6)
  assert (params["d"] == 1).all()
  bound = np.abs(params["dt_kernel"]).max()
  assert params["dt_kernel"].shape == (4, 2, 64)
  assert 0.9 * 2**-0.5 < bound <= 2**-0.5


def test_taps():
  model, variables = mtair_small.model_and_variables()
  names = taps.list_names(model, variables, mtair_small.IMAGES)
  assert "encoder_0/block_0/attention/attention_weights" in names
  assert "refinement/block_0/hidden_state" in names
  assert "prompt_2/gate" in names
  assert len(names) == 3 * 2 + 3 * 2
  read = jax.jit(
    lambda variables: taps.read(
      model, variables, mtair_small.IMAGES, names=["prompt_0/*"]
    )[1]
  )(variables)
  maps = read["prompt_0/attention/attention_weights"]
  assert maps.shape == (2, 2, 10, 10)
  np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
  assert read["prompt_0/gate"].shape == (2, 4, 12, 1)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"scale": 2}, "scale is 2; this model keeps the size"),
    ({"width": 0}, "width is 0; it must be 1 or more"),
    ({"width": 21, "heads": (1,) * 3, "prompt_heads": 3}, "width is 21; it"),
    ({"heads": (1, 2)}, r"heads is \(1, 2\); depths=\(1, 0, 0\) need one"),
    ({"heads": (1, 3, 4)}, "level 1 has 40 channels, which 3 does not divide"),
    ({"prompt_sides": (4, 2)}, r"prompt_sides is \(4, 2\)"),
    ({"prompt_widths": (4, 0, 8)}, r"prompt_widths is \(4, 0, 8\)"),
    ({"prompt_heads": 3}, "prompt_heads is 3; level 0 has 20 channels"),
    ({"scan_levels": (3,)}, r"scan_levels is \(3,\);.* are 0 to 2"),
    ({"scan_chunk": 0}, "chunk_size is 0"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    mtair_small.shapes(mtair_small.model(**fields))


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((1, 6, 8, 3), "x is 6 x 8; .* multiples of 4"),
    ((1, 8, 8, 1), r"x has shape \(1, 8, 8, 1\)"),
  ],
)
def test_images_that_do_not_fit(shape, message):
  model, variables = mtair_small.model_and_variables()
  with pytest.raises(ValueError, match=message):
    model.apply(variables, jnp.zeros(shape))
