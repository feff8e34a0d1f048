"""LINA's parameters: totals, the authors' names, other resolutions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import lina, lina_attention, pretrained
from models.weight_maps import lina as weight_names
from tests.models import lina_small
from training import paths

# Of the fact sheet, counted from the authors' modules.
COUNTS = {
  "lina_d48w768": 363_190_288,
  "lina_d48w1024": 644_685_840,
  "lina_d48w1536": 1_448_243_216,
  "lina_d48w1536_text_256": 1_450_639_376,
  "lina_d48w1536_text_512": 1_451_130_896,
  "lina_d48w1536_text_1024": 1_453_096_976,
}
TRAINABLE = {
  "lina_d48w768": 362_349_328,
  "lina_d48w1024": 643_302_416,
  "lina_d48w1536": 1_445_381_648,
}
WITHOUT_GATE = {
  "lina_d48w768": 363_067_408,
  "lina_d48w1024": 644_522_000,
  "lina_d48w1536": 1_448_079_376,
}
WITHOUT_BOTH = {
  "lina_d48w768": 362_747_920,
  "lina_d48w1024": 644_096_016,
  "lina_d48w1536": 1_447_440_400,
}
BASELINES = {
  "linear": {"gate": "none", "convolution": False},
  "softmax": {"gate": "none", "convolution": False, "attention": "softmax"},
}


def sizes(name, **fields):
  """Numbers of parameters by path; blocks after the first are like it."""
  model = models.create(name, **fields)
  layers = [f for f in lina_small.SMALL if f.endswith("_layers")]
  one = lina_small.shapes(model.clone(**dict.fromkeys(layers, 1)))["params"]
  found = {}
  for path, leaf in traverse_util.flatten_dict(one).items():
    found[path] = math.prod(leaf.shape)
    if any(part.startswith("block_") for part in path):
      stack = path[0].removesuffix("_head")
      found[path] *= getattr(model, f"{stack}_layers")
  return found


@pytest.mark.parametrize("name", COUNTS)
def test_totals(name):
  assert set(COUNTS) == set(lina.VARIANTS)
  found = sizes(name)
  assert sum(found.values()) == COUNTS[name]
  if name not in TRAINABLE:
    return
  frozen = {
    path: size
    for path, size in found.items()
    if paths.first_match(lina.FROZEN, "/".join(path)) is not None
  }
  assert COUNTS[name] - sum(frozen.values()) == TRAINABLE[name]
  if name == "lina_d48w1536":
    of_name = weight_names.weight_map(models.create(name))
    of_part = {}
    for path, size in found.items():
      part = of_name(path)[0].split(".")[0]
      of_part[part] = of_part.get(part, 0) + size
    assert of_part["video_encoder"] == 453_407_232
    assert of_part["image_encoder"] == 907_440_640
    assert of_part["image_decoder"] == 83_093_008


@pytest.mark.parametrize("name", TRAINABLE)
def test_totals_of_what_is_left_out(name):
  assert sum(sizes(name, gate="none").values()) == WITHOUT_GATE[name]
  for fields in BASELINES.values():
    assert sum(sizes(name, **fields).values()) == WITHOUT_BOTH[name]


def test_weights_there_and_back():
  for fields in ({}, {"normalizer": "subtraction"}, {"text_width": 6}):
    model, variables = lina_small.model_and_variables(**fields)
    tensors = pretrained.to_tensors(variables, model)
    name = "image_encoder.blocks.1.attn.key_scale"
    assert tensors[name].shape == (1, 2, 4 + lina_small.PLACES, 1)
    attention = "image_encoder.blocks.0.attn."
    inputs = {"q", "kv"} if "normalizer" in fields else {"qkv"}
    assert {
      n.removeprefix(attention).split(".")[0]
      for n in tensors
      if n.startswith(attention)
    } == inputs | {"proj"}
    back = pretrained.from_tensors(tensors, model)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    del tensors[name]
    tensors["image_encoder.blocks.2.norm1.weight"] = np.ones(16)
    with pytest.raises(ValueError, match=f"(?s)2 tensors .*missing: {name}"):
      pretrained.from_tensors(tensors, model)


def test_a_file(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  model, variables = lina_small.model_and_variables()
  path = tmp_path / "diffusion_pytorch_model.safetensors"
  safetensors.save_file(pretrained.to_tensors(variables, model), path)
  loaded = pretrained.load(path, model)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_gates_start_again_at_another_resolution():
  model, variables = lina_small.model_and_variables()
  wide = lina_small.model(grid=(4, 6), queries=9)
  with pytest.raises(ValueError, match=r"(?s)2 tensors .*starts it again"):
    pretrained.adapt(variables, wide)
  tensors = pretrained.to_tensors(variables, model)
  for loaded in (
    pretrained.adapt(variables, wide, resize_tables=True),
    pretrained.from_tensors(tensors, wide, resize_tables=True),
  ):
    flat = traverse_util.flatten_dict(loaded["params"])
    for path, old in traverse_util.flatten_dict(variables["params"]).items():
      if path[-1] in lina_attention.GATE_LEAVES:
        assert flat[path].shape == (33, 2)
        assert (flat[path] == 1).all()
      else:
        np.testing.assert_array_equal(flat[path], old)
  # Another number of heads is no other resolution.
  tensors["image_encoder.blocks.1.attn.key_scale"] = np.ones((1, 4, 16, 1))
  with pytest.raises(ValueError, match="1 tensors do not fit"):
    pretrained.from_tensors(tensors, model, resize_tables=True)
  condition, tokens = jnp.zeros((1, 9, 16)), jnp.zeros((1, 24, 3))
  visible = jnp.zeros((1, 1), jnp.int32)
  with pytest.raises(ValueError, match=r"gate has shape \(16, 2\).*resize_tab"):
    wide.apply(variables, condition, tokens, visible, method="encode_decode")
