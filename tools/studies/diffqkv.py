"""DiffQKV attention (arXiv 2501.13629): keys need fewer heads than values.

Claimed: of 8 query heads, cutting the heads of keys to a fourth costs less loss
than cutting those of values, at a cache that is as small; and parameters of
augmented queries, which no cache pays for, help more than as many in the
feed-forward layers. Against: all heads, and grouped queries; the control of the
last claim is a wider feed-forward layer with as many parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from configs import language
from models import decoding
from tools import study, work

HEADS = 8
# One and a half times the width, as in the paper.
_AUGMENTED = {"query_hidden": 96, "query_form": "gated"}
_MIXERS = {
  "8 of keys, 8 of values": {},
  "2 of keys, 8 of values": {"key_heads": 2},
  "8 of keys, 2 of values": {"value_heads": 2},
  "2 and 2": {"key_heads": 2, "value_heads": 2},
  "8 and 8, augmented queries": _AUGMENTED,
  "8 and 8, wider feed-forward": {},
}
# 3 x 64 x 75 parameters for 3 x 64 x 96 - 64 x 64.
_WIDER = 75
# Tokens of the cache that a step is counted with.
CONTEXT = 2048


def rows(variant: str) -> Sequence[study.Row]:
  """Models of two layers, as the effect is of each layer."""
  made = []
  for name, options in _MIXERS.items():
    config = language.get_config("study")
    config.model.update({"depth": 2, "mixer_options": {"full": options}})
    if "wider" in name:
      config.model.mlp_width += _WIDER
    if variant == "test":
      config = study.shrunk(config, depth=1)
    config.model.heads = HEADS
    made.append(study.Row(name, config))
  return made


def measure(run: study.Run) -> dict[str, float]:
  """The cache of a token in bfloat16, and products of a step of decoding."""
  model = run.task.model
  token = decoding.cache_bytes_per_token(
    model.clone(dtype=jnp.bfloat16), CONTEXT
  )
  cache = jax.eval_shape(lambda: model.init_cache(1, CONTEXT))
  step = jax.ShapeDtypeStruct((1, 1), jnp.int32)

  def decode(variables, tokens, positions, cache):
    return model.apply(variables, tokens, positions=positions, cache=cache)

  done = work.count_work(decode, run.variables, step, step, cache)
  return {
    "cache_bytes": token["keys"] + token["values"],
    "step_multiply_adds": done.multiply_adds,
  }


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Losses, and what a token costs."""
  made = []
  for name in _MIXERS:
    own = [line for line in lines if line["row"] == name]
    made.append(
      [
        name,
        f"{own[0]['parameters']:,}",
        study.spread([line["loss"] for line in own], 4),
        study.spread([line["bits_per_byte"] for line in own], 3),
        f"{own[0]['cache_bytes']:,}",
        f"{own[0]['step_multiply_adds'] / 1e6:.2f}",
      ]
    )
  header = (
    "heads",
    "parameters",
    "loss",
    "bits per byte",
    "bytes of the cache a token",
    f"M multiply-adds of a step at {CONTEXT:,} tokens",
  )
  return {"diffqkv": study.markdown(header, made)}
