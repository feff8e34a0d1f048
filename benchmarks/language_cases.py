"""Language models that are timed: their config.json, and how long a text is."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Size:
  """What all families of a case share.

  Attributes:
    depth: number of layers.
    heads: of queries; for Llama there are half as many of keys and values.
    width: channels of the residual stream.
    vocabulary: number of tokens.
    length: of a row to train on; decoding fills as much with prompt and answer.
    batch: rows of a training step.
    prompt: tokens that are there before the first one that is decoded.
  """

  depth: int
  heads: int
  width: int
  vocabulary: int
  length: int
  batch: int
  prompt: int


SIZES = {
  # nanoGPT's setting for a CPU, on characters.
  "small": Size(4, 4, 128, 65, 64, 12, 16),
  # nanoGPT's default on characters, with a smaller batch.
  "medium": Size(6, 6, 384, 65, 256, 8, 64),
  # A head as wide as GPT-2's.
  "words": Size(4, 4, 256, 50257, 128, 4, 32),
}
# By `model_type`, the class in transformers.
FAMILIES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}


def config(family: str, size: Size) -> dict[str, Any]:
  """Returns what config.json says, without dropout."""
  if family == "gpt2":
    return {
      "vocab_size": size.vocabulary,
      "n_positions": size.length,
      "n_embd": size.width,
      "n_layer": size.depth,
      "n_head": size.heads,
      "attn_pdrop": 0.0,
      "embd_pdrop": 0.0,
      "resid_pdrop": 0.0,
      "bos_token_id": 0,
      "eos_token_id": 0,
    }
  return {
    "vocab_size": size.vocabulary,
    "max_position_embeddings": size.length,
    "hidden_size": size.width,
    # As Llama has it, a multiple of 8: 8/3 of the width.
    "intermediate_size": 8 * (size.width // 3),
    "num_hidden_layers": size.depth,
    "num_attention_heads": size.heads,
    "num_key_value_heads": size.heads // 2,
    "tie_word_embeddings": True,
  }
