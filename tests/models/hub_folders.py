"""Folders as the hub has them, of our own random weights: no transformers."""

import json

import jax
import jax.numpy as jnp
import pytest

from models import huggingface, pretrained, registry
from models.transformer import Transformer
from tests import parity_helper

CONFIGS = {
  "gpt2": {
    "model_type": "gpt2",
    "vocab_size": 13,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 6,
    # As the oldest file has it.
    "n_ctx": 6,
    "summary_type": "cls_index",
  },
  "llama": {
    "model_type": "llama",
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
    "rope_scaling": None,
  },
  "bert": {
    "model_type": "bert",
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
  },
}


def model_and_tensors(config):
  """Returns the model, random variables, and their tensors as in files."""
  model = registry.build(Transformer, huggingface.fields(config))
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  variables = parity_helper.randomise(shapes, 0)
  weight_map = huggingface.architecture(config).naming.weight_map(model)
  tensors = pretrained.to_tensors(variables, model, weight_map=weight_map)
  return model, variables, tensors


def write(folder, config, tensors):
  """Writes a folder with one file."""
  safetensors = pytest.importorskip("safetensors.numpy")
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  safetensors.save_file(tensors, folder / "model.safetensors")
  return folder


def shard(folder):
  """Cuts the file of a folder into three, with an index."""
  safetensors = pytest.importorskip("safetensors.numpy")
  whole = folder / "model.safetensors"
  tensors = safetensors.load_file(whole)
  whole.unlink()
  index = {}
  for i in range(3):
    file = f"model-{i + 1:05}-of-00003.safetensors"
    part = dict(sorted(tensors.items())[i::3])
    safetensors.save_file(part, folder / file)
    index |= dict.fromkeys(part, file)
  path = folder / "model.safetensors.index.json"
  path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
  return path
