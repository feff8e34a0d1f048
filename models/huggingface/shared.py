"""What several architectures of the hub say in the same words."""

import math
from collections.abc import Sequence
from typing import Any

from models.huggingface.options import Options

# Names of activations, to those of `models.feed_forward`.
PLAIN = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu2": "squared_relu",
}
GATED = {
  "silu": "swiglu",
  "swish": "swiglu",
  "gelu": "geglu",
  "gelu_new": "geglu_tanh",
  "gelu_pytorch_tanh": "geglu_tanh",
}
_MIXERS = {"full_attention": "full", "sliding_attention": "sliding"}


def decoder(options: Options, head_dim: int = 0) -> dict[str, Any]:
  """Returns the fields that Llama and its descendants have in common.

  Args:
    options: the keys of config.json.
    head_dim: channels of a head where config.json does not say; 0 for the width
      over the heads.
  """
  bias = options.take("attention_bias", False)
  heads = options.take("num_attention_heads")
  return {
    "vocabulary_size": options.take("vocab_size"),
    "width": options.take("hidden_size"),
    "depth": options.take("num_hidden_layers"),
    "heads": heads,
    "kv_heads": options.take("num_key_value_heads", heads),
    "head_dim": options.take("head_dim", head_dim),
    "norm": "rms_norm",
    "norm_epsilon": options.take("rms_norm_eps", 1e-6),
    "position_encoding": "rotary",
    "max_length": options.take("max_position_embeddings"),
    "mlp_width": options.take("intermediate_size"),
    "attention_bias": bias,
    "out_bias": bias,
  }


def mixers(types: Sequence[str], options: Options) -> tuple[str, ...]:
  """Returns the shortest pattern that repeats to the types of all layers."""
  unknown = sorted(set(types) - set(_MIXERS))
  if unknown:
    options.note(f"layer_types has {unknown}; we have {sorted(_MIXERS)}")
    return ("full",)
  depth = len(types)
  for period in range(1, depth + 1):
    pattern = list(types[:period])
    if depth % period == 0 and pattern * (depth // period) == list(types):
      return tuple(_MIXERS[name] for name in pattern)
  return ("full",)


def layer_types(
  options: Options, depth: int, default: Sequence[str]
) -> Sequence[str]:
  """Returns the type of each layer, those of config.json or the default."""
  types = options.take("layer_types", default)
  if len(types) != depth:
    options.note(f"layer_types has {len(types)} layers, the model {depth}")
  return types


def rotary(
  options: Options, length: int, fraction: float = 1.0
) -> dict[str, Any]:
  """Returns the field `rotary`, from the new names of its keys or the old.

  Args:
    options: the keys of config.json.
    length: greatest length of a text.
    fraction: of the channels that turn, where config.json does not say.
  """
  old = {
    "base": options.take("rope_theta", 10000.0),
    "fraction": options.take("partial_rotary_factor", fraction),
  }
  scaling = options.within("rope_scaling")
  parameters = options.within("rope_parameters")
  return rotary_of(scaling or parameters, old, length)


def rotary_of(
  parameters: Options | None, defaults: dict[str, float], length: int
) -> dict[str, Any]:
  """Returns the field `rotary` for the keys in `rope_parameters`."""
  if parameters is None:
    return defaults
  fields = {
    "base": parameters.take("rope_theta", defaults["base"]),
    "fraction": parameters.take("partial_rotary_factor", defaults["fraction"]),
  }
  # The older name of `rope_type` may be beside it.
  kind = parameters.take("type", "default")
  kind = parameters.take("rope_type", kind)
  match kind:
    case "default":
      scaling = None
    case "linear":
      scaling = {"factor": parameters.take("factor")}
    case "llama3":
      scaling = {
        "factor": parameters.take("factor"),
        "low_frequency_factor": parameters.take("low_freq_factor"),
        "high_frequency_factor": parameters.take("high_freq_factor"),
        "original_length": _original_length(parameters, length),
      }
    case "yarn":
      scaling = _yarn(parameters, length)
    case _:
      scaling = None
      parameters.note(
        f"rope_type is {kind!r}; we have 'default', 'linear', 'llama3', 'yarn'"
      )
  parameters.note_unknown()
  if scaling is not None:
    fields["scaling"] = {"type": kind, **scaling}
  return fields


def _yarn(parameters: Options, length: int) -> dict[str, Any]:
  original = _original_length(parameters, length)
  factor = parameters.take("factor", length / (original or 1))
  attention = parameters.take("attention_factor", 0.0)
  scales = [parameters.take(k, 0.0) for k in ("mscale", "mscale_all_dim")]
  if not attention and all(scales) and factor > 1:
    numerator, denominator = (0.1 * s * math.log(factor) + 1 for s in scales)
    attention = numerator / denominator
  return {
    "factor": factor,
    "original_length": original,
    "beta_fast": parameters.take("beta_fast", 32.0),
    "beta_slow": parameters.take("beta_slow", 1.0),
    "attention_factor": attention,
    "truncate": parameters.take("truncate", True),
  }


def _original_length(parameters: Options, length: int) -> int:
  return parameters.take("original_max_position_embeddings", length)
