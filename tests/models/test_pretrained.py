"""Loading and storing weights: a round trip, and every way not to fit."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import duoformer, pretrained
from tests import parity_helper
from tests.models import small


@pytest.fixture
def tensors():
  model = small.model(window_size=2)
  return pretrained.to_tensors(small.variables(model), model)


def _assert_equal(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_round_trip():
  model = small.model()
  variables = small.variables(model)
  tensors = pretrained.to_tensors(variables, model)
  assert len(tensors) == len(jax.tree.leaves(variables))
  tensors["stem.norm1.num_batches_tracked"] = np.zeros((), np.int64)
  _assert_equal(pretrained.from_tensors(tensors, model), variables)


# Traces or compiles whole networks.
@pytest.mark.slow
def test_file_round_trip(tmp_path, tensors):
  safetensors = pytest.importorskip("safetensors.numpy")
  path = tmp_path / "model.safetensors"
  safetensors.save_file(tensors, path)
  model = small.model()
  _assert_equal(pretrained.load(path, model), small.variables(model))
  fresh = pretrained.load(path, model, replace_head=True)
  assert not fresh["params"]["head"]["logits"]["bias"].any()
  assert 0.01 < fresh["params"]["head"]["logits"]["kernel"].std() < 0.03


def test_every_misfit_is_listed(tensors):
  del tensors["stem.conv1.bias"]
  tensors["unheard.of"] = np.zeros(3)
  tensors["head.norm.weight"] = np.zeros(7)
  with pytest.raises(ValueError, match="3 tensors do not fit") as caught:
    pretrained.from_tensors(tensors, small.model())
  message = str(caught.value)
  assert "missing: stem.conv1.bias" in message
  assert "surplus: unheard.of" in message
  assert "head.norm.weight has (7,), the model needs (32,)" in message


# Traces or compiles whole networks.
@pytest.mark.slow
def test_tables_are_resized_only_when_asked(tensors):
  wide = small.model(window_size=4)
  with pytest.raises(ValueError, match=r"(?s)6 tensors .*resize_tables=True"):
    pretrained.from_tensors(tensors, wide)
  loaded = pretrained.from_tensors(tensors, wide, resize_tables=True)
  attention = loaded["params"]["stage_0"]["block_0"]["grid_attention"]
  table = np.asarray(attention["attention"]["relative_bias_table"])
  assert table.shape == (2, 7, 7)
  name = "stages.0.blocks.0.attn_grid.attn.rel_pos.relative_position_bias_table"
  np.testing.assert_allclose(table[:, 3, 3], tensors[name][:, 1, 1], rtol=1e-5)


def test_head_is_replaced_only_when_asked(tensors):
  other = small.model(num_classes=3)
  with pytest.raises(ValueError, match=r"(?s)2 tensors .*replace_head=True"):
    pretrained.from_tensors(tensors, other)
  loaded = pretrained.from_tensors(tensors, other, replace_head=True)
  assert set(loaded["params"]["head"]) == {"norm", "hidden"}


def test_adapting_to_other_classes_and_windows():
  variables = small.variables(small.model(window_size=2))
  wide = small.model(window_size=4, num_classes=3)
  with pytest.raises(ValueError, match="8 tensors do not fit the model"):
    pretrained.adapt(variables, wide)
  adapted = pretrained.adapt(
    variables, wide, resize_tables=True, replace_head=True
  )
  head = adapted["params"]["head"]
  assert head["logits"]["kernel"].shape == (32, 3)
  assert not head["logits"]["bias"].any()
  _assert_equal(head["hidden"], variables["params"]["head"]["hidden"])
  _assert_equal(adapted["batch_stats"], variables["batch_stats"])
  tables = [
    tree["params"]["stage_1"]["block_1"]["block_attention"]["attention"]
    for tree in (adapted, variables)
  ]
  assert tables[0]["relative_bias_table"].shape == (4, 7, 7)
  _assert_equal(tables[0]["qkv"], tables[1]["qkv"])


def _duoformer(**overrides):
  trunk = {"depths": (1,) * 4, "widths": (4, 6, 8, 10), "stem_widths": (4,) * 3}
  fields = {"backbone": "resnet18", "backbone_options": trunk, "num_classes": 3}
  sizes = {"width": 8, "heads": 2, "scale_depth": 1, "patch_depth": 1}
  return duoformer.DuoFormer(**{**fields, **sizes, **overrides})


def test_file_round_trip_of_a_model_with_a_trunk(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  for block in ("attn_only", "vit"):
    model = _duoformer(scale_token="channel", patch_block=block)
    variables = parity_helper.random_variables(model, 0)
    tensors = pretrained.to_tensors(variables, model)
    assert len(tensors) == len(jax.tree.leaves(variables))
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    loaded = pretrained.load(tmp_path / "model.safetensors", model)
    _assert_equal(loaded, variables)


def test_part_takes_the_weights_of_a_model_like_it(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  model = _duoformer()
  trunk = models.create("resnet18", **model.backbone_options)
  variables = parity_helper.random_variables(trunk, 0)
  tensors = pretrained.to_tensors(variables, trunk)
  assert "fc.weight" in tensors
  path = tmp_path / "resnet18.safetensors"
  safetensors.save_file(tensors, path)
  loaded = pretrained.load(path, model, part="trunk")
  assert loaded["params"].keys() > {"trunk", "scale_tokens", "head"}
  del variables["params"]["head"]
  for collection, expected in variables.items():
    _assert_equal(loaded[collection]["trunk"], expected)
  adapted = pretrained.adapt(variables, model, part="trunk")
  _assert_equal(adapted, loaded)
  del tensors["layer1.0.conv1.weight"]
  tensors |= {"unheard.of": np.zeros(3), "bn1.bias": np.zeros(7)}
  with pytest.raises(ValueError, match="3 tensors do not fit") as caught:
    pretrained.from_tensors(tensors, model, part="trunk")
  message = str(caught.value)
  assert "missing: layer1.0.conv1.weight, for params/trunk/stage_0" in message
  assert "surplus: unheard.of" in message
  assert "bn1.bias has (7,), the model needs (4,)" in message
  with pytest.raises(ValueError, match="part is 'torso'; DuoFormer has no"):
    pretrained.from_tensors(tensors, model, part="torso")


def test_headless_models_ignore_a_classifier_when_asked(tensors):
  headless = small.model(num_classes=0, window_size=2)
  with pytest.raises(ValueError, match=r"surplus: head.fc"):
    pretrained.from_tensors(tensors, headless)
  tensors = {k: v for k, v in tensors.items() if "pre_logits" not in k}
  loaded = pretrained.from_tensors(tensors, headless, replace_head=True)
  assert set(loaded["params"]["head"]) == {"norm"}


def test_what_is_no_weight_is_refused(tmp_path, tensors):
  safetensors = pytest.importorskip("safetensors.numpy")
  tensors["stem.conv1.bias"] = tensors["stem.conv1.bias"].astype(np.int8)
  tensors["head.norm.bias"][3] = np.nan
  # Finite where it was stored, and not in float32.
  tensors["head.norm.weight"] = np.full(32, 1e39)
  path = tmp_path / "quantised.safetensors"
  safetensors.save_file(tensors, path)
  with pytest.raises(ValueError, match="3 tensors do not fit") as caught:
    pretrained.load(path, small.model())
  message = str(caught.value)
  assert "dtype: stem.conv1.bias has int8, which is not floating" in message
  assert "value: head.norm.bias has NaN or infinite elements" in message
  assert "value: head.norm.weight has NaN or infinite elements" in message
  assert "quantised.safetensors" in message


def test_other_floating_dtypes_are_converted(tmp_path, tensors):
  safetensors = pytest.importorskip("safetensors.numpy")
  dtypes = itertools.cycle([jnp.float16, jnp.bfloat16, np.float64])
  stored = {
    name: tensor.astype(dtype)
    for (name, tensor), dtype in zip(tensors.items(), dtypes, strict=False)
  }
  safetensors.save_file(stored, tmp_path / "model.safetensors")
  model = small.model(window_size=2)
  loaded = pretrained.load(tmp_path / "model.safetensors", model)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("f4")}
  for name, tensor in pretrained.to_tensors(loaded, model).items():
    expected = stored[name].astype(np.float32)
    np.testing.assert_array_equal(tensor, expected, err_msg=name)


def test_a_prefix_of_all_names_is_named(tensors):
  wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
  with pytest.raises(ValueError, match=r"begins with 'module\.', which"):
    pretrained.from_tensors(wrapped, small.model())


def test_broken_files_are_named(tmp_path, tensors):
  safetensors = pytest.importorskip("safetensors.numpy")
  whole = safetensors.save(tensors)
  header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
  for name, content in {
    "empty": b"",
    "cut": whole[: len(whole) // 2],
    "page": b"<!DOCTYPE html><html><body>404</body></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "float8": len(header).to_bytes(8, "little") + header + b"0",
  }.items():
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)
    message = f"{name}.safetensors', which cannot be read"
    with pytest.raises(ValueError, match=message):
      pretrained.load(path, small.model())


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt"])
def test_pickles_are_refused(suffix):
  with pytest.raises(ValueError, match="a pickle: reading one runs"):
    pretrained.load(f"weights.{suffix}", small.model())


def test_sources_that_are_not_there(monkeypatch):
  with pytest.raises(ValueError, match="no such file"):
    pretrained.load("nowhere.safetensors", small.model())
  with pytest.raises(ValueError, match=r"must be a .safetensors file or"):
    pretrained.load("weights.h5", small.model())
  with pytest.raises(ValueError, match=r"overrides are .'num_classes'"):
    pretrained.load("weights.h5", small.model(), num_classes=3)
  hub = pytest.importorskip("huggingface_hub")

  def offline(*args):
    raise OSError("no network")

  monkeypatch.setattr(hub, "hf_hub_download", offline)
  with pytest.raises(ValueError, match=r"no network.*By hand: get https"):
    pretrained.load("timm:maxvit_tiny_tf_224.in1k", small.model())


def test_models_without_a_map_are_refused(tensors):
  with pytest.raises(ValueError, match="model is a Dense"):
    pretrained.from_tensors(tensors, nn.Dense(3))


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.parity
def test_timm_file(tmp_path):
  """Weights that timm initialised and saved give timm's logits."""
  torch, timm = parity_helper.import_timm()
  safetensors = pytest.importorskip("safetensors.torch")
  torch.manual_seed(0)
  fields = {"num_classes": 10, "depths": (1, 1, 1, 1)}
  theirs = timm.create_model("maxvit_tiny_tf_224", **fields).eval()
  path = str(tmp_path / "model.safetensors")
  safetensors.save_file(theirs.state_dict(), path)
  images = parity_helper.random_images(1, 224)
  expected = parity_helper.timm_logits(theirs, images)
  variables = pretrained.load(path, "maxvit_tiny_224", **fields)
  model = models.create("maxvit_tiny_224", **fields)
  logits = small.apply(model, variables, images)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_would_be_taken_for_another(seed):
  with pytest.raises(
    ValueError, match=f"seed is {seed}, but must have 32 bits"
  ):
    pretrained.adapt({}, models.create("resnet18"), seed=seed)
