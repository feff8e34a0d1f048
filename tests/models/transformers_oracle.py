"""Language models of transformers, small and random, in the folders they save.

Every parameter is drawn anew: what is 0 or 1 in a fresh model would hide that
it was passed by.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np

from tests import parity_helper

VOCABULARY = 61
LENGTH = 23
# Tokens of padding at the beginning of each row.
PADDING = (0, 5)
_SIZES = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_attention_heads": 4,
  "pad_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}


@dataclasses.dataclass(frozen=True)
class Case:
  """A model of transformers.

  Attributes:
    family: its module there.
    name: its class.
    options: of its config.
    different: options each of which has to change the logits, so that they are
      known to matter.
  """

  family: str
  name: str
  options: dict[str, Any]
  different: tuple[dict[str, Any], ...] = ()

  def config(self, **overrides: Any):
    """Returns transformers' config."""
    _, module = parity_helper.import_transformers(self.family)
    cls = getattr(module, self.name).config_class
    return cls(**{**self.options, **overrides}, attn_implementation="eager")

  def model(self, seed: int = 0, **overrides: Any):
    """Returns transformers' model with random parameters."""
    torch, module = parity_helper.import_transformers(self.family)
    model = getattr(module, self.name)(self.config(**overrides)).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
      for name, parameter in sorted(model.named_parameters()):
        parameter.copy_(torch.from_numpy(_draw(rng, name, parameter)))
    return model


def _draw(rng, name, parameter) -> np.ndarray:
  noise = rng.standard_normal(tuple(parameter.shape), np.float32)
  if parameter.ndim == 1:
    # Around what a fresh model has: 1 for factors of norms, or 0.
    return (0.3 * noise + parameter.detach().numpy().mean().round()).astype(
      "f4"
    )
  if "wte" in name or "embed" in name:
    return 0.7 * noise
  # Of a sum over `inputs`, whichever axis that is: both are about the width.
  return noise / np.sqrt(min(parameter.shape)).astype("f4")


def batch() -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens and positions, [rows, LENGTH], padded on the left."""
  rng = np.random.default_rng(1)
  tokens = rng.integers(1, VOCABULARY, (len(PADDING), LENGTH), np.int32)
  positions = np.arange(LENGTH) - np.array(PADDING)[:, None]
  return tokens, np.maximum(positions, -1).astype(np.int32)


def run(model, tokens, positions, **options):
  """Returns the output of transformers' model."""
  torch, _ = parity_helper.import_timm()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return model(
      input_ids=torch.from_numpy(tokens).long(),
      attention_mask=torch.from_numpy(positions >= 0).long(),
      position_ids=torch.from_numpy(np.maximum(positions, 0)).long(),
      **options,
    )


LLAMA3_SCALING = {
  "rope_type": "llama3",
  "rope_theta": 100.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
YARN_SCALING = {
  "rope_type": "yarn",
  "rope_theta": 100.0,
  "factor": 4.0,
  "original_max_position_embeddings": 16,
}
CASES = {
  "gpt2": Case(
    "gpt2",
    "GPT2LMHeadModel",
    {
      "vocab_size": VOCABULARY,
      "n_embd": 32,
      "n_layer": 3,
      "n_head": 4,
      "n_positions": 32,
      "bos_token_id": 1,
      "eos_token_id": 1,
    },
  ),
  "llama": Case(
    "llama",
    "LlamaForCausalLM",
    {
      **_GROUPED,
      "num_hidden_layers": 2,
      "rope_parameters": LLAMA3_SCALING,
      "max_position_embeddings": 128,
    },
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},),
  ),
  "llama with biases": Case(
    "llama",
    "LlamaForCausalLM",
    {
      **_GROUPED,
      "num_hidden_layers": 2,
      "head_dim": 12,
      "attention_bias": True,
      "mlp_bias": True,
      "tie_word_embeddings": True,
      "rope_parameters": {"rope_type": "linear", "factor": 2.0},
    },
  ),
  "qwen3": Case(
    "qwen3",
    "Qwen3ForCausalLM",
    {
      **_GROUPED,
      "num_hidden_layers": 3,
      "head_dim": 16,
      "tie_word_embeddings": True,
      "use_sliding_window": True,
      "sliding_window": 7,
      "max_window_layers": 1,
      "max_position_embeddings": 64,
      "rope_parameters": YARN_SCALING,
    },
    (
      {"use_sliding_window": False},
      {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    ),
  ),
  "gemma2": Case(
    "gemma2",
    "Gemma2ForCausalLM",
    {
      **_GROUPED,
      "num_hidden_layers": 4,
      "head_dim": 16,
      "query_pre_attn_scalar": 3,
      "sliding_window": 6,
      "attn_logit_softcapping": 1.5,
      "final_logit_softcapping": 3.0,
    },
    (
      {"sliding_window": 64},
      {"attn_logit_softcapping": None},
      {"final_logit_softcapping": None},
      {"query_pre_attn_scalar": 16},
    ),
  ),
  "qwen3_next": Case(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    {
      **_GROUPED,
      "num_hidden_layers": 2,
      "head_dim": 16,
      "num_experts": 0,
      "layer_types": ["full_attention"] * 2,
    },
  ),
  "bert": Case(
    "bert",
    "BertForMaskedLM",
    {**_SIZES, "num_hidden_layers": 2, "max_position_embeddings": 32},
  ),
  "modernbert": Case(
    "modernbert",
    "ModernBertForMaskedLM",
    {
      **_SIZES,
      **dict.fromkeys(("bos_token_id", "cls_token_id"), 1),
      **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
      "num_hidden_layers": 4,
      "global_attn_every_n_layers": 2,
      "local_attention": 8,
      "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
      },
    },
    ({"local_attention": 64},),
  ),
}
