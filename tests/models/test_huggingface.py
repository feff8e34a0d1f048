"""Reading folders of the hub: what fits is read, and nothing else is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import huggingface, pretrained, registry, weight_files
from models.transformer import Transformer
from tests.models import hub_folders

CONFIGS = hub_folders.CONFIGS

# What the repositories' config.json say of shapes, and the parameters that
# transformers counts of them without memory ("meta").
_LLAMA3 = {
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "vocab_size": 128256,
}
_QWEN3 = {
  "head_dim": 128,
  "hidden_size": 1024,
  "intermediate_size": 3072,
  "num_attention_heads": 16,
  "num_hidden_layers": 28,
  "num_key_value_heads": 8,
  "tie_word_embeddings": True,
  "vocab_size": 151936,
}
_GEMMA2 = {
  "head_dim": 256,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_attention_heads": 8,
  "num_hidden_layers": 26,
  "num_key_value_heads": 4,
  "vocab_size": 256000,
}
_BERT = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_attention_heads": 12,
  "num_hidden_layers": 12,
  "vocab_size": 30522,
}
_MODERNBERT = {
  "hidden_size": 768,
  "intermediate_size": 1152,
  "num_attention_heads": 12,
  "num_hidden_layers": 22,
  "vocab_size": 50368,
}


def _gpt2(width, depth, heads):
  sizes = {"n_embd": width, "n_layer": depth, "n_head": heads}
  return {**sizes, "n_positions": 1024, "vocab_size": 50257}


@pytest.mark.parametrize(
  ("architecture", "sizes", "length", "parameters"),
  [
    ("gpt2", _gpt2(768, 12, 12), None, 124_439_808),
    ("gpt2", _gpt2(1024, 24, 16), None, 354_823_168),
    ("gpt2", _gpt2(1280, 36, 20), None, 774_030_080),
    ("gpt2", _gpt2(1600, 48, 25), None, 1_557_611_200),
    ("llama", _LLAMA3, 8192, 8_030_261_248),
    ("qwen3", _QWEN3, 40960, 596_049_920),
    ("gemma2", _GEMMA2, 8192, 2_614_341_888),
    ("bert", _BERT, 512, 109_514_298),
    ("modernbert", _MODERNBERT, 8192, 149_655_232),
  ],
)
def test_parameters_of_public_sizes(architecture, sizes, length, parameters):
  config = {"model_type": architecture, **sizes}
  if length:
    config["max_position_embeddings"] = length
  fields = huggingface.fields(config)
  # Traced once; ModernBERT's pattern is as long as its layers are many.
  fields["scan_layers"] = architecture != "modernbert"
  model = registry.build(Transformer, fields)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def _assert_equal(ours, expected):
  jax.tree.map(np.testing.assert_array_equal, ours, expected)


def _dtypes(variables):
  return {leaf.dtype.name for leaf in jax.tree.leaves(variables)}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_round_trip(architecture, tmp_path):
  config = CONFIGS[architecture]
  model, variables, tensors = hub_folders.model_and_tensors(config)
  folder = hub_folders.write(tmp_path, config, tensors)
  loaded_model, loaded = pretrained.from_huggingface(folder)
  assert loaded_model == model
  _assert_equal(loaded, variables)
  hub_folders.shard(folder)
  _assert_equal(pretrained.from_huggingface(str(folder))[1], variables)


def test_overrides(tmp_path):
  config = CONFIGS["llama"]
  model, variables, tensors = hub_folders.model_and_tensors(config)
  half = {n: t.astype(jnp.bfloat16) for n, t in tensors.items()}
  folder = hub_folders.write(tmp_path, config, half)
  scanned, stacked = pretrained.from_huggingface(
    folder, scan_layers=True, dropout_rate=0.1
  )
  assert scanned.scan_layers
  assert scanned.dropout_rate == 0.1
  assert _dtypes(stacked) == {"float32"}
  tokens = jnp.arange(5)[None] % 13
  rounded = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), variables
  )
  np.testing.assert_allclose(
    jax.jit(scanned.apply)(stacked, tokens),
    jax.jit(model.apply)(rounded, tokens),
    atol=1e-6,
  )
  _, kept = pretrained.from_huggingface(folder, param_dtype="bfloat16")
  assert _dtypes(kept) == {"bfloat16"}
  with pytest.raises(ValueError, match=r"no field .* 'dropout'; did you mean"):
    pretrained.from_huggingface(folder, dropout=0.1)
  with pytest.raises(ValueError, match="scan_layers=3 of Transformer must be"):
    pretrained.from_huggingface(folder, scan_layers=3)


def test_old_names_and_what_is_no_parameter(tmp_path):
  """GPT-2's own file has no prefix and has masks; Llama's had frequencies."""
  _, variables, tensors = hub_folders.model_and_tensors(CONFIGS["gpt2"])
  tensors = {n.removeprefix("transformer."): t for n, t in tensors.items()}
  mask = np.tril(np.ones((1, 1, 6, 6), bool))
  tensors |= {"h.0.attn.bias": mask, "h.1.attn.masked_bias": np.zeros(1, "f4")}
  folder = hub_folders.write(tmp_path / "gpt2", CONFIGS["gpt2"], tensors)
  _assert_equal(pretrained.from_huggingface(folder)[1], variables)

  _, variables, tensors = hub_folders.model_and_tensors(CONFIGS["llama"])
  tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(2, "f4")
  folder = hub_folders.write(tmp_path / "llama", CONFIGS["llama"], tensors)
  _assert_equal(pretrained.from_huggingface(folder)[1], variables)

  _, variables, tensors = hub_folders.model_and_tensors(CONFIGS["bert"])
  for new, old in (("weight", "gamma"), ("bias", "beta")):
    tensors = {
      n.replace(f"LayerNorm.{new}", f"LayerNorm.{old}"): t
      for n, t in tensors.items()
    }
  assert any(name.endswith("LayerNorm.gamma") for name in tensors)
  tensors["bert.pooler.dense.weight"] = np.ones((8, 8), "f4")
  tensors["cls.seq_relationship.bias"] = np.ones(2, "f4")
  folder = hub_folders.write(tmp_path / "bert", CONFIGS["bert"], tensors)
  _assert_equal(pretrained.from_huggingface(folder)[1], variables)


def test_a_tied_head_may_be_stored_twice_if_it_is_equal(tmp_path):
  config = CONFIGS["gpt2"]
  _, variables, tensors = hub_folders.model_and_tensors(config)
  tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
  folder = hub_folders.write(tmp_path, config, tensors)
  _assert_equal(pretrained.from_huggingface(folder)[1], variables)
  tensors["lm_head.weight"][3, 2] += 1e-3
  hub_folders.write(tmp_path, config, tensors)
  message = (
    "surplus: lm_head.weight, which config.json ties to transformer.wte.weight"
  )
  with pytest.raises(ValueError, match=message):
    pretrained.from_huggingface(folder)
  hub_folders.write(tmp_path, {**config, "tie_word_embeddings": False}, tensors)
  head = pretrained.from_huggingface(folder)[1]["params"]["head"]["logits"]
  np.testing.assert_array_equal(head["kernel"], tensors["lm_head.weight"].T)


def test_every_misfit_is_listed(tmp_path):
  config = CONFIGS["gpt2"]
  _, _, tensors = hub_folders.model_and_tensors(config)
  del tensors["transformer.h.1.ln_1.bias"]
  tensors["transformer.h.2.ln_1.bias"] = np.zeros(8, "f4")
  tensors["transformer.h.0.attn.c_attn.weight"] = np.zeros((24, 8), "f4")
  tensors["transformer.wpe.weight"][2, 3] = np.nan
  tensors["transformer.ln_f.bias"] = np.zeros(8, "i4")
  folder = hub_folders.write(tmp_path, config, tensors)
  with pytest.raises(ValueError, match="5 tensors do not fit") as caught:
    pretrained.from_huggingface(folder)
  message = str(caught.value)
  assert str(folder) in message
  for problem in (
    "missing: transformer.h.1.ln_1.bias, for params/layer_1/mixer_norm/bias",
    "surplus: transformer.h.2.ln_1.bias",
    "transformer.h.0.attn.c_attn.weight has (24, 8), the model needs (8, 24)",
    "transformer.wpe.weight has NaN or infinite elements",
    "transformer.ln_f.bias has int32, which is not floating",
  ):
    assert problem in message


def test_weights_of_another_architecture(tmp_path):
  _, _, tensors = hub_folders.model_and_tensors(CONFIGS["gpt2"])
  folder = hub_folders.write(tmp_path, CONFIGS["llama"], tensors)
  with pytest.raises(ValueError, match=r"missing: model\.embed_tokens"):
    pretrained.from_huggingface(folder)
  hub_folders.write(folder, {"model_type": "mamba"}, tensors)
  message = (
    "'mamba'; weights can be read for .'bert', 'gemma2', 'gpt2', 'llama'"
  )
  with pytest.raises(ValueError, match=message):
    pretrained.from_huggingface(folder)


@pytest.mark.parametrize(
  ("architecture", "changes", "problems"),
  [
    (
      "gpt2",
      {
        "activation_function": "relu",
        "scale_attn_by_inverse_layer_idx": True,
        "quantization_config": {"bits": 4},
        "n_embd": None,
      },
      [
        "activation_function is 'relu'; we have ['gelu', 'gelu_new'",
        "scale_attn_by_inverse_layer_idx is True; we have False alone",
        "quantization_config is {'bits': 4}, a key that we do not know",
        "n_embd is missing",
      ],
    ),
    (
      "llama",
      {"rope_scaling": {"type": "longrope", "factor": 2.0}},
      [
        "rope_type is 'longrope'; we have 'default', 'linear', 'llama3',",
        "rope_scaling.factor is 2.0, a key that we do not know",
      ],
    ),
    (
      "llama",
      {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
      ["rope_scaling.low_freq_factor is missing"],
    ),
    (
      "llama",
      {"model_type": "qwen3", "layer_types": ["linear_attention"] * 2},
      ["layer_types has ['linear_attention']; we have ['full_attention', "],
    ),
    (
      "llama",
      {"model_type": "qwen3_next"},
      [
        "we have 'full_attention' alone",
        "layers [0, 1] have experts",
      ],
    ),
    (
      "llama",
      {"model_type": "gemma2", "use_bidirectional_attention": True},
      ["use_bidirectional_attention is True; we have False alone"],
    ),
    ("bert", {"position_embedding_type": "relative_key"}, ["relative_key"]),
    (
      "bert",
      {"model_type": "modernbert", "classifier_activation": "silu"},
      ["classifier_activation differs from hidden_activation"],
    ),
  ],
)
def test_what_we_have_not_is_listed(architecture, changes, problems):
  with pytest.raises(ValueError, match="asks for what we have not") as caught:
    huggingface.fields({**CONFIGS[architecture], **changes})
  for problem in problems:
    assert problem in str(caught.value)


def test_old_names_of_rotary_options():
  new = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 2.0,
    "mscale_all_dim": 1.0,
  }
  old = {("type" if k == "rope_type" else k): v for k, v in new.items()}
  del old["rope_theta"]
  config = CONFIGS["llama"]
  from_old = huggingface.fields({**config, "rope_scaling": old})
  from_new = huggingface.fields(
    {**config, "rope_theta": None, "rope_parameters": new}
  )
  assert from_old == from_new
  scaling = from_new["rotary"]["scaling"]
  assert scaling["type"] == "yarn"
  assert scaling["factor"] == 4.0
  # (0.2 ln 4 + 1) / (0.1 ln 4 + 1)
  assert scaling["attention_factor"] == pytest.approx(1.1217516)


def test_folders_that_are_none(tmp_path, monkeypatch):
  config = CONFIGS["gpt2"]
  with pytest.raises(ValueError, match=r"a folder without config\.json"):
    pretrained.from_huggingface(tmp_path)
  with pytest.raises(ValueError, match="no such folder, and it is no name"):
    pretrained.from_huggingface(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="a pickle: reading one runs"):
    pretrained.from_huggingface(tmp_path / "pytorch_model.bin")
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"a file; it must be the folder"):
    pretrained.from_huggingface(tmp_path / "config.json")
  with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
    pretrained.from_huggingface(tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
  with pytest.raises(ValueError, match="a pickle: reading one runs"):
    pretrained.from_huggingface(tmp_path)
  for text in ("<html>", "[1]"):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
      ValueError, match=r"config\.json (is not JSON|has a list)"
    ):
      pretrained.from_huggingface(tmp_path)


def test_shards_that_are_not_what_their_index_says(tmp_path):
  config = CONFIGS["gpt2"]
  _, _, tensors = hub_folders.model_and_tensors(config)
  folder = hub_folders.write(tmp_path, config, tensors)
  index = hub_folders.shard(folder)
  stated = json.loads(index.read_text())
  files = stated["weight_map"]
  first = sorted(files)[0]
  files["other"] = files.pop(first)
  index.write_text(json.dumps(stated))
  with pytest.raises(ValueError, match="does not hold what") as caught:
    pretrained.from_huggingface(folder)
  assert f"{files['other']} lacks other" in str(caught.value)
  assert f"{files['other']} has {first}, which" in str(caught.value)
  (folder / files["other"]).unlink()
  with pytest.raises(ValueError, match="lacks 1 of the 3 files"):
    pretrained.from_huggingface(folder)
  index.write_text("{}")
  with pytest.raises(ValueError, match="has no weight_map"):
    pretrained.from_huggingface(folder)


def test_repositories(tmp_path, monkeypatch):
  hub = pytest.importorskip("huggingface_hub")
  config = CONFIGS["gpt2"]
  _, variables, tensors = hub_folders.model_and_tensors(config)
  folder = hub_folders.write(tmp_path, config, tensors)

  def download(name, allow_patterns):
    assert name == "someone/gpt2"
    assert not any(pattern.endswith(".bin") for pattern in allow_patterns)
    return str(folder)

  monkeypatch.setattr(hub, "snapshot_download", download)
  loaded = pretrained.from_huggingface("someone/gpt2")[1]
  _assert_equal(loaded, variables)

  def offline(*args, **options):
    raise OSError("no network")

  monkeypatch.setattr(hub, "snapshot_download", offline)
  with pytest.raises(
    ValueError, match=r"no network.*By hand: get config\.json"
  ):
    pretrained.from_huggingface("someone/gpt2")
  assert weight_files.folder(folder) == folder
