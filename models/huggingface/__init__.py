"""From config.json of a model on the hub to fields of `Transformer`.

Those of models of images and text are fields of `VisionLanguage`.

An architecture is a function that takes every key it knows from the file, so
that a key that would change the result and that nobody took is an error; and
how its files name the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from models import transformer
from models import vision_language as image_models
from models.huggingface import decoders, encoders, vision_language
from models.huggingface.options import Options
from models.weight_maps.hub import bert, gpt2, llama, llava, modernbert
from models.weight_maps.hub.naming import Naming


class Architecture(NamedTuple):
  """How to read one.

  Attributes:
    fields: returns the fields of `model`, given the keys of config.json.
    naming: of its files.
    model: the class.
  """

  fields: Callable[[Options], dict[str, Any]]
  naming: Naming | llava.Naming
  model: type[transformer.Transformer] = transformer.Transformer


# By `model_type` in config.json.
ARCHITECTURES = {
  "bert": Architecture(encoders.bert, bert.NAMING),
  "gemma2": Architecture(decoders.gemma2, llama.NAMING),
  "gpt2": Architecture(decoders.gpt2, gpt2.NAMING),
  "llama": Architecture(decoders.llama, llama.NAMING),
  "llava": Architecture(
    vision_language.llava, llava.NAMING, image_models.VisionLanguage
  ),
  "modernbert": Architecture(encoders.modernbert, modernbert.NAMING),
  "qwen3": Architecture(decoders.qwen3, llama.NAMING),
  "qwen3_next": Architecture(decoders.qwen3_next, llama.NAMING),
}


def architecture(config: Mapping[str, Any]) -> Architecture:
  """Returns how to read the architecture that config.json names.

  Raises:
    ValueError: if it is not known.
  """
  name = config.get("model_type")
  if name not in ARCHITECTURES:
    raise ValueError(
      f"config.json has model_type {name!r}; weights can be read for "
      f"{sorted(ARCHITECTURES)}"
    )
  return ARCHITECTURES[name]


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of the architecture's class for config.json's object.

  Raises:
    ValueError: if the architecture is not known, or a key is missing, unknown
      or has a value that we do not implement; lists all.
  """
  options = Options(config)
  result = architecture(config).fields(options)
  options.check()
  return result
