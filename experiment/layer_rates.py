"""Learning rates that grow from layer to layer, for fine-tuning."""

import re
from collections.abc import Iterable

import ml_collections

# Patterns of the layers of all families, from images or tokens on.
_LAYERS = (
  r"(position_|token_type_)?embed(_norm)?",
  r"layer_\d+",
  r"stem(_\w+)?",
  r"stage_\d+/block_\d+",
  r"block_\d+",
  r"scale_tokens",
  r"scale_block_\d+",
  r"patch_tokens",
  r"patch_layer_\d+",
  r"final_(conv|norm)",
)


def with_layer_rules(
  config: ml_collections.ConfigDict, names: Iterable[str]
) -> ml_collections.ConfigDict:
  """Returns the config with the rules that its `stem_factor` stands for.

  Args:
    config: of a run; left as it is.
    names: the paths of the model's parameters.

  Raises:
    ValueError: if there are rules beside the factor.
  """
  factor = config.optimizer.stem_factor
  rules = config.optimizer.learning_rate_rules
  if factor == 1:
    return config
  if rules:
    raise ValueError(
      f"optimizer.stem_factor={factor} and learning_rate_rules={rules} both "
      "give layers learning rates: set stem_factor=1 or learning_rate_rules=()."
    )
  config = config.copy_and_resolve_references()
  config.optimizer.learning_rate_rules = layer_rules(names, factor)
  return config


def layer_rules(
  names: Iterable[str], stem_factor: float
) -> tuple[tuple[str, float], ...]:
  """Learning-rate rules by which each layer learns slower than the next.

  Layers are the stem, each block, and each of what makes or ends tokens between
  blocks.

  Args:
    names: the paths of a model's parameters.
    stem_factor: of the stem's learning rate against the head's, for which there
      is no rule. The ratio from layer to layer is constant, and follows from
      it: one given would stop the stem of a deep model.

  Returns:
    Rules for `optimizer.learning_rate_rules`, the stem's first, which match
    every parameter but the head's.
  """
  layers = sorted(set(filter(None, map(_layer, names))))
  return tuple(
    (pattern, stem_factor ** (1 - index / len(layers)))
    for index, (_, pattern) in enumerate(layers)
  )


def _layer(name: str) -> tuple[tuple[int, ...], str] | None:
  """Returns where a parameter's layer lies, to sort by, and its pattern."""
  for kind, pattern in enumerate(_LAYERS):
    if match := re.search(rf"(?:^|/)(?P<layer>{pattern})/", name):
      numbers = re.findall(r"\d+", match["layer"])
      for number in numbers:
        pattern = pattern.replace(r"\d+", number, 1)
      return (kind, *map(int, numbers)), pattern
  return None
