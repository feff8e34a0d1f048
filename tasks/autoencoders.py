"""A trained autoencoder, for whatever makes latents or turns them to images."""

import hashlib
import json
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections

import models
import storage
from models import pretrained
from tasks.base import Variables
from training import checkpoints, fingerprints, records


class Trained(NamedTuple):
  """An autoencoder with weights.

  Attributes:
    name: of its model.
    source: what `load` takes, with a path that is valid everywhere.
    model: with the methods "encode" and "decode".
    variables: of the model.
    fingerprint: 16 hexadecimal digits of the variables.
  """

  name: str
  source: str
  model: nn.Module
  variables: Variables
  fingerprint: str


def load(source: str, *, fingerprint: str = "") -> Trained:
  """Loads an autoencoder.

  Args:
    source: the workdir of a run, of which it is the last checkpoint and the
      moving average if there is one; or "<model>:<path>.safetensors", as
      "autoencoder_sdxl:vae.safetensors".
    fingerprint: that it must have; "" for any.

  Raises:
    ValueError: if it is not there, is no autoencoder or has another
      fingerprint.
    CheckpointError: if the checkpoint cannot be read.
  """
  name, colon, path = source.partition(":")
  if colon and path.endswith(".safetensors"):
    model = models.create(_check_kind(source, name))
    variables = pretrained.load(path, model)
    place = f"{name}:{storage.absolute(storage.path(path))}"
  elif source.endswith(".safetensors"):
    raise ValueError(
      f"autoencoder {source!r} is a file of weights, which does not say of what"
      f" model: write {source!r} as '<model>:{source}', with one of "
      f"{', '.join(models.list(kind='autoencoder'))}."
    )
  else:
    config = records.load_config(source, ml_collections.ConfigDict)
    name = config.get("model", {}).get("name", "")
    model = _model_of(source, config)
    variables = _restore(source, config)
    place = str(storage.absolute(storage.path(source)))
  found = _fingerprint(variables)
  if fingerprint not in ("", found):
    raise ValueError(
      f"autoencoder {source!r} has other weights (fingerprint {found}) than the"
      f" one that made the latents ({fingerprint}): its images would be wrong."
    )
  return Trained(name, place, model, variables, found)


def _check_kind(source: str, name: str) -> str:
  known = models.list(kind="autoencoder")
  if name not in known:
    raise ValueError(
      f"autoencoder {source!r} is of model {name!r}, which is none: there are "
      f"{', '.join(known)}."
    )
  return name


def _model_of(source: str, config: ml_collections.ConfigDict) -> nn.Module:
  """The model of a run's config, computing in float32."""
  fields = config.get("model", ml_collections.ConfigDict()).to_dict()
  name = _check_kind(source, fields.pop("name", ""))
  # As the run's task has it of its data.
  return models.create(name, channels=config.data.channels, **fields)


def _restore(source: str, config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The variables of a run's last checkpoint, on this process's first device."""
  metric = config.checkpoint.best_metric
  store = checkpoints.Checkpoints(
    source,
    config.checkpoint,
    # Nothing is compared.
    {metric: "min"},
    read_only=True,
  )
  if not (steps := store.steps()):
    raise ValueError(f"autoencoder {source!r} has no checkpoint yet.")
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return store.restore_variables(steps[-1], device, averaged=True)


def _fingerprint(variables: Variables) -> str:
  numbers = fingerprints.fingerprint(variables)
  text = json.dumps(numbers, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
