"""The error of a name of a value that is not there, with the near ones."""

import re
from collections.abc import Iterable

from models import registry

# TransformerLens's names, for those who bring them along: of a block, and of
# the whole model. `docs/interpret.md` has them with what they are here.
_OF_BLOCKS = {
  "hook_resid_pre": "input_state",
  "attn.hook_q": "mixer/queries",
  "attn.hook_rot_q": "mixer/queries",
  "attn.hook_k": "mixer/keys",
  "attn.hook_rot_k": "mixer/keys",
  "attn.hook_v": "mixer/values",
  "attn.hook_attn_scores": "mixer/attention_scores",
  "attn.hook_pattern": "mixer/attention_weights",
  "attn.hook_z": "mixer/head_outputs",
  "hook_attn_out": "mixer_output",
  "hook_resid_mid": "middle_state",
  "mlp.hook_post": "mlp/hidden",
  "hook_mlp_out": "mlp_output",
  "hook_resid_post": "hidden_state",
}
_OF_MODELS = {"ln_final.hook_normalized": "final_state"}
_BLOCK = re.compile(r"blocks\.(\d+|\*)\.(.+)")


def from_transformer_lens(name: str) -> str | None:
  """What a value of TransformerLens is called in language models here.

  Args:
    name: as "blocks.0.attn.hook_pattern" or "blocks.*.hook_resid_post".

  Returns:
    As "layer_0/mixer/attention_weights"; None for a name that it has not, or
    whose value has no tap.
  """
  if not (found := _BLOCK.fullmatch(name)):
    return _OF_MODELS.get(name)
  number, rest = found.groups()
  return f"layer_{number}/{_OF_BLOCKS[rest]}" if rest in _OF_BLOCKS else None


def unknown(kind: str, pattern: str, known: Iterable[str]) -> ValueError:
  """Makes the error of a pattern that fits no value.

  Args:
    kind: what it should have been, as "tap".
    pattern: that was asked for.
    known: names of all values.
  """
  if ours := from_transformer_lens(pattern):
    return ValueError(
      f"there is no {kind} {pattern!r}, as TransformerLens has it; in language "
      f"models here it is {ours!r}"
    )
  known = list(known)
  if not registry.nearest(pattern, known):
    # All of them, but what all layers have once.
    known = {re.sub(r"_\d+(?=/)", "_*", name) for name in known}
  return registry.unknown(kind, pattern, known)
