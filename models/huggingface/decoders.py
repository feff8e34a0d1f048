"""Fields of `Transformer` for decoders of the hub: a function a family."""

import functools
from typing import Any

from models import normalization
from models.huggingface import shared
from models.huggingface.options import Options


def gpt2(options: Options) -> dict[str, Any]:
  """GPT-2 (Radford et al. 2019): layer norm, learned positions, biases."""
  options.expect(
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False,
  )
  width = options.take("n_embd")
  return {
    "vocabulary_size": options.take("vocab_size"),
    "width": width,
    "depth": options.take("n_layer"),
    "heads": options.take("n_head"),
    "norm": "layer_norm",
    "norm_epsilon": options.take("layer_norm_epsilon", 1e-5),
    "norm_bias": True,
    "position_encoding": "learned",
    "max_length": options.take("n_positions"),
    "mlp": options.choose("activation_function", shared.PLAIN, "gelu_new"),
    "mlp_width": options.take("n_inner", 4 * width),
    "attention_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "tied_head": options.take("tie_word_embeddings", True),
  }


def llama(options: Options) -> dict[str, Any]:
  """Llama (2407.21783): RMSNorm, rotary positions, grouped queries, SwiGLU."""
  fields = shared.decoder(options)
  # Its own code reads no such key.
  options.expect(partial_rotary_factor=1.0)
  return {
    **fields,
    "rotary": shared.rotary(options, fields["max_length"]),
    "mlp": options.choose("hidden_act", shared.GATED, "silu"),
    "mlp_bias": options.take("mlp_bias", False),
    "tied_head": options.take("tie_word_embeddings", False),
  }


def qwen3(options: Options) -> dict[str, Any]:
  """Qwen3 (2505.09388): Llama with normalised queries and keys."""
  fields = shared.decoder(options, head_dim=128)
  window = options.take("sliding_window", 4096, null=0)
  window *= options.take("use_sliding_window", False)
  first = options.take("max_window_layers", 28)
  types = [
    "sliding_attention" if window and i >= first else "full_attention"
    for i in range(fields["depth"])
  ]
  types = shared.layer_types(options, fields["depth"], types)
  options.expect(partial_rotary_factor=1.0)
  return {
    **fields,
    "mixers": shared.mixers(types, options),
    "window": window,
    "qk_norm": True,
    "rotary": shared.rotary(options, fields["max_length"]),
    "mlp": options.choose("hidden_act", shared.GATED, "silu"),
    "tied_head": options.take("tie_word_embeddings", False),
  }


def qwen3_next(options: Options) -> dict[str, Any]:
  """Qwen3-Next's gated attention, if all layers have it and no experts."""
  fields = shared.decoder(options, head_dim=256)
  depth = fields["depth"]
  interval = options.take("full_attention_interval", 4)
  types = [
    "linear_attention" if (i + 1) % interval else "full_attention"
    for i in range(depth)
  ]
  types = shared.layer_types(options, depth, types)
  if set(types) != {"full_attention"}:
    options.note(f"layer_types is {types}; we have 'full_attention' alone")
  _refuse_experts(options, depth)
  options.drop(
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
  )
  return {
    **fields,
    "norm_offset": True,
    "qk_norm": True,
    "output_gate": "elementwise",
    "rotary": shared.rotary(options, fields["max_length"], fraction=0.25),
    "mlp": options.choose("hidden_act", shared.GATED, "silu"),
    "tied_head": options.take("tie_word_embeddings", False),
  }


def qwen3_next_attention(options: Options) -> dict[str, Any]:
  """Fields of the mixer "full" for a layer of Qwen3-Next's gated attention.

  What config.json says of other things, as experts, does not matter to it. The
  weights of a layer are `weight_maps.hub.gated_attention`'s.
  """
  fields = shared.decoder(options, head_dim=256)
  names = ("heads", "kv_heads", "head_dim", "position_encoding")
  names += ("attention_bias", "out_bias")
  return {name: fields[name] for name in names} | {
    "rotary": shared.rotary(options, fields["max_length"], fraction=0.25),
    "qk_norm": functools.partial(
      normalization.RMSNorm, fields["norm_epsilon"], offset=True
    ),
    "output_gate": "elementwise",
  }


def _refuse_experts(options: Options, depth: int) -> None:
  step = options.take("decoder_sparse_step", 1)
  dense = options.take("mlp_only_layers", [])
  sparse = [i for i in range(depth) if (i + 1) % step == 0 and i not in dense]
  if options.take("num_experts", 512) and sparse:
    options.note(
      f"layers {sparse} have experts (num_experts, mlp_only_layers); we have "
      "dense feed-forward layers alone"
    )
  options.drop(
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts_per_tok",
    "shared_expert_intermediate_size",
  )


def gemma2(options: Options) -> dict[str, Any]:
  """Gemma 2 (2408.00118): soft caps, alternating windows, sandwich norms."""
  fields = shared.decoder(options, head_dim=256)
  depth = fields["depth"]
  types = [
    "full_attention" if i % 2 else "sliding_attention" for i in range(depth)
  ]
  types = shared.layer_types(options, depth, types)
  # `hidden_act` is older, and transformers reads the other one.
  options.drop("hidden_act")
  options.expect(partial_rotary_factor=1.0, use_bidirectional_attention=False)
  return {
    **fields,
    "mixers": shared.mixers(types, options),
    "window": options.take("sliding_window", 4096),
    "norm_offset": True,
    "norm_placement": "sandwich",
    "rotary": shared.rotary(options, fields["max_length"]),
    "mlp": options.choose(
      "hidden_activation", shared.GATED, "gelu_pytorch_tanh"
    ),
    "attention_scale": options.take("query_pre_attn_scalar", 256) ** -0.5,
    "attention_soft_cap": options.take(
      "attn_logit_softcapping", 50.0, null=0.0
    ),
    "logit_soft_cap": options.take("final_logit_softcapping", 30.0, null=0.0),
    "embedding_scale": fields["width"] ** 0.5,
    "tied_head": options.take("tie_word_embeddings", True),
  }
