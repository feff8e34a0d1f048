"""The fields of `config.data` for generators, and those that do not act."""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from input_pipeline import images

# What still decides over the examples where these are latents, or only says
# where they were.
_ACTING = (
  *("train_split", "eval_split", "classes", "num_threads", "num_workers"),
  *("latents", "autoencoder", "text", "data_dir"),
)


def default_config() -> ml_collections.ConfigDict:
  """The pixels of the digits, which are the default of the image room."""
  config = images.default_config()
  # The folder that tools/encode_latents.py wrote; "" is pixels, of which all
  # other fields of images are.
  config.latents = ""
  # What decodes latents: the workdir of a run or a file of weights. "" is the
  # one that encoded them, as their folder says.
  config.autoencoder = ""
  # A file of tools/encode_text.py, see `texts.py`; "" is no text.
  config.text = ""
  return config


def image_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that decide over images and not over latents, as in JSON."""
  fields = {
    name: value
    for name, value in images.default_config().items()
    if name not in _ACTING
  }
  chosen = {name: config[name] for name in fields}
  return json.loads(ml_collections.ConfigDict(chosen).to_json())


def check_image_fields(
  config: ml_collections.ConfigDict, encoded: Mapping[str, Any]
) -> None:
  """Refuses what would have no effect on latents.

  Args:
    config: `config.data`.
    encoded: what `image_fields` gave for the latents.

  Raises:
    ValueError: for a field that has neither its default nor the value that it
      had when the latents were made.
  """
  default = image_fields(images.default_config())
  for name, value in image_fields(config).items():
    if value not in (default[name], encoded[name]):
      raise ValueError(
        f"{name} is {value!r}, which acts on images, but latents="
        f"{config.latents!r} were made with {encoded[name]!r}: leave it so, or "
        "encode the images again."
      )
