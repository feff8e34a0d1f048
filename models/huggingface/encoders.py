"""Fields of `Transformer` for encoders of the hub: a function a family."""

from typing import Any

from models.huggingface import shared
from models.huggingface.options import Options


def bert(options: Options) -> dict[str, Any]:
  """BERT (1810.04805) with the head of its masked language model."""
  options.expect(
    is_decoder=False,
    add_cross_attention=False,
    position_embedding_type="absolute",
  )
  return {
    "vocabulary_size": options.take("vocab_size"),
    "width": options.take("hidden_size"),
    "depth": options.take("num_hidden_layers"),
    "heads": options.take("num_attention_heads"),
    "causal": False,
    "norm": "layer_norm",
    "norm_epsilon": options.take("layer_norm_eps", 1e-12),
    "norm_placement": "post",
    "embedding_norm": True,
    "position_encoding": "learned",
    "max_length": options.take("max_position_embeddings"),
    "token_types": options.take("type_vocab_size", 2),
    "mlp": options.choose("hidden_act", shared.PLAIN, "gelu"),
    "mlp_width": options.take("intermediate_size"),
    "mlp_bias": True,
    "attention_bias": True,
    "out_bias": True,
    "tied_head": options.take("tie_word_embeddings", True),
    "head_bias": True,
    "head_transform": True,
  }


def modernbert(options: Options) -> dict[str, Any]:
  """ModernBERT (2412.13663) with the head of its masked language model."""
  depth = options.take("num_hidden_layers")
  period = options.take("global_attn_every_n_layers", 3)
  types = [
    "sliding_attention" if i % period else "full_attention"
    for i in range(depth)
  ]
  types = shared.layer_types(options, depth, types)
  mlp = options.choose("hidden_activation", shared.GATED, "gelu")
  mlp_bias = options.take("mlp_bias", False)
  # The transform before the logits takes both from the feed-forward layers.
  options.expect(classifier_bias=mlp_bias)
  head = options.choose("classifier_activation", shared.GATED, "gelu")
  if head != mlp:
    options.note("classifier_activation differs from hidden_activation")
  # Older files have them beside those that count.
  options.drop("layer_norm_eps", "position_embedding_type")
  bias = options.take("attention_bias", False)
  length = options.take("max_position_embeddings")
  return {
    "vocabulary_size": options.take("vocab_size"),
    "width": options.take("hidden_size"),
    "depth": depth,
    "heads": options.take("num_attention_heads"),
    "mixers": shared.mixers(types, options),
    # Theirs is that of both sides, without the token.
    "window": options.take("local_attention", 128) // 2 + 1,
    "causal": False,
    "norm": "layer_norm",
    "norm_epsilon": options.take("norm_eps", 1e-5),
    "norm_bias": options.take("norm_bias", False),
    "first_mixer_norm": False,
    "embedding_norm": True,
    "position_encoding": "rotary",
    "rotary": _rotary(options, length),
    "max_length": length,
    "mlp": mlp,
    "mlp_width": options.take("intermediate_size"),
    "mlp_bias": mlp_bias,
    "attention_bias": bias,
    "out_bias": bias,
    "tied_head": options.take("tie_word_embeddings", True),
    "head_bias": options.take("decoder_bias", True),
    "head_transform": True,
  }


def _rotary(options: Options, length: int) -> dict[str, Any]:
  """Two bases: of layers that see all tokens, and of those with a window."""
  bases = {
    "full_attention": options.take("global_rope_theta", 160000.0),
    "sliding_attention": options.take("local_rope_theta", 10000.0),
  }
  parameters = options.within("rope_parameters")
  found = {}
  for kind, base in bases.items():
    own = None if parameters is None else parameters.within(kind)
    default = {"base": base, "fraction": 1.0}
    found[kind] = shared.rotary_of(own, default, length)
  if parameters is not None:
    parameters.note_unknown()
  local = found["sliding_attention"]
  if "scaling" in local:
    options.note(
      "rope_parameters.sliding_attention are scaled; we have no such"
    )
  return {**found["full_attention"], "local_base": local["base"]}
