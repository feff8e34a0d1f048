"""Public sizes of the transformer: the fields that their configs have."""

import math
from typing import Any

_GPT2 = {
  "vocabulary_size": 50257,
  "max_length": 1024,
  "norm": "layer_norm",
  "norm_epsilon": 1e-5,
  "position_encoding": "learned",
  "mlp": "gelu_tanh",
  "mlp_bias": True,
  "attention_bias": True,
  "out_bias": True,
}
_LLAMA3 = {
  "vocabulary_size": 128256,
  "norm_epsilon": 1e-5,
  "rotary": {"base": 500000.0},
}
_QWEN3 = {
  "vocabulary_size": 151936,
  "head_dim": 128,
  "qk_norm": True,
  "rotary": {"base": 1000000.0},
}
_GEMMA2 = {
  "vocabulary_size": 256000,
  "mixers": ("sliding", "full"),
  "window": 4096,
  "norm_offset": True,
  "norm_placement": "sandwich",
  "mlp": "geglu_tanh",
  "attention_soft_cap": 50.0,
  "logit_soft_cap": 30.0,
}
_BERT = {
  "vocabulary_size": 30522,
  "max_length": 512,
  "causal": False,
  "norm": "layer_norm",
  "norm_epsilon": 1e-12,
  "norm_placement": "post",
  "embedding_norm": True,
  "position_encoding": "learned",
  "token_types": 2,
  "mlp": "gelu",
  "mlp_bias": True,
  "attention_bias": True,
  "out_bias": True,
  "head_transform": True,
  "head_bias": True,
}
_MODERNBERT = {
  "vocabulary_size": 50368,
  "causal": False,
  # 64 tokens on each side of a token's own.
  "window": 65,
  "norm": "layer_norm",
  "norm_epsilon": 1e-5,
  "norm_bias": False,
  "embedding_norm": True,
  "first_mixer_norm": False,
  "rotary": {"base": 160000.0, "local_base": 10000.0},
  "mlp": "geglu",
  "head_transform": True,
  "head_bias": True,
}

# Of no config.json that we know, but of table 14 of the paper.
_SIGMA = {"vocabulary_size": 128256}

_BASED = {
  # GPT-2's, padded to a multiple of 8.
  "vocabulary_size": 50264,
  "norm_epsilon": 1e-5,
  "position_encoding": "none",
  "mixer_options": {
    "convolution": {"attention_bias": True, "out_bias": True},
    "linear": {
      "feature_map": "taylor",
      "feature_dim": 16,
      "epsilon": 1e-12,
    },
    # Published as 256, of which the code sees half before a token, and it.
    "sliding": {"window": 256 // 2 + 1, "position_encoding": "rotary"},
  },
}


def _size(width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
  return {"width": width, "depth": depth, "heads": heads, **more}


def _modernbert(width: int, depth: int, heads: int, hidden: int):
  pattern = tuple("sliding" if i % 3 else "full" for i in range(depth))
  size = _size(width, depth, heads, mlp_width=hidden, mixers=pattern)
  return {**_MODERNBERT, **size}


def _llama3(width: int, depth: int, heads: int, hidden: int, **more: Any):
  size = _size(width, depth, heads, kv_heads=8, mlp_width=hidden)
  return {**_LLAMA3, "tied_head": False, **size, **more}


def _llama3_2(width: int, depth: int, heads: int, head_dim: int):
  scaling = {"type": "llama3", "factor": 32.0, "original_length": 8192}
  return _llama3(
    width,
    depth,
    heads,
    8192,
    head_dim=head_dim,
    tied_head=True,
    rotary={"base": 500000.0, "scaling": scaling},
  )


def _qwen3(width: int, depth: int, heads: int, hidden: int, tied: bool):
  size = _size(width, depth, heads, kv_heads=8, mlp_width=hidden)
  return {**_QWEN3, **size, "tied_head": tied}


def _gemma2(width, depth, heads, kv_heads, head_dim, hidden, scale):
  size = _size(width, depth, heads, kv_heads=kv_heads, head_dim=head_dim)
  return {
    **_GEMMA2,
    **size,
    "mlp_width": hidden,
    "attention_scale": scale**-0.5,
    "embedding_scale": math.sqrt(width),
  }


def _sigma(width, depth, hidden, query_hidden, base, tied):
  heads = {"key_heads": 4, "value_heads": 16, "query_hidden": query_hidden}
  return {
    **_SIGMA,
    **_size(width, depth, 32, mlp_width=hidden, tied_head=tied),
    # That augmented queries are gated is reconstructed (`UnequalHeads`).
    "mixer_options": {"full": {**heads, "query_form": "gated"}},
    "rotary": {"base": base},
  }


def _based(width: int, depth: int, linear: tuple[int, ...]):
  """A window follows each layer of linear attention; most are convolutions."""
  pattern = ["convolution"] * depth
  for i in linear:
    pattern[i : i + 2] = "linear", "sliding"
  size = _size(width, depth, 16, mlp_width=2 * width, mixers=tuple(pattern))
  return {**_BASED, **size}


# Radford et al. 2019; arXiv 2407.21783; 2505.09388; 2408.00118; 1810.04805;
# 2412.13663: from the config.json that each is published with; 2402.18668: from
# the configs of its code.
SIZES: dict[str, dict[str, Any]] = {
  # The fields of the class as they are, to be set one by one.
  "transformer": {},
  "gpt2": {**_GPT2, **_size(768, 12, 12)},
  "gpt2_medium": {**_GPT2, **_size(1024, 24, 16)},
  "gpt2_large": {**_GPT2, **_size(1280, 36, 20)},
  "gpt2_xl": {**_GPT2, **_size(1600, 48, 25)},
  "llama3_8b": _llama3(4096, 32, 32, 14336),
  "llama3_70b": _llama3(8192, 80, 64, 28672),
  "llama3_2_1b": _llama3_2(2048, 16, 32, 64),
  "llama3_2_3b": _llama3_2(3072, 28, 24, 128),
  "qwen3_0_6b": _qwen3(1024, 28, 16, 3072, True),
  "qwen3_1_7b": _qwen3(2048, 28, 16, 6144, True),
  "qwen3_4b": _qwen3(2560, 36, 32, 9728, True),
  "qwen3_8b": _qwen3(4096, 36, 32, 12288, False),
  "gemma2_2b": _gemma2(2304, 26, 8, 4, 256, 9216, 256),
  "gemma2_9b": _gemma2(3584, 42, 16, 8, 256, 14336, 256),
  # arXiv 2501.13629: whether embeddings are tied is not printed, but the names
  # fit so.
  "sigma_1_5b": _sigma(2048, 26, 6144, 3072, 50000.0, True),
  "sigma_10b": _sigma(4096, 32, 14336, 6144, 500000.0, False),
  "based_360m": _based(1024, 27, (1, 6, 11, 16, 21)),
  "based_1b": _based(1792, 36, (1, 6, 11, 16, 21, 27, 33)),
  "bert_base": {**_BERT, **_size(768, 12, 12)},
  "bert_large": {**_BERT, **_size(1024, 24, 16)},
  "modernbert_base": _modernbert(768, 22, 12, 1152),
  "modernbert_large": _modernbert(1024, 28, 16, 2624),
}
