"""A classifier of ours as feature network: of a run, or trained on the spot."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import experiment
from configs import common
from experiment.batches import create_train_batches
from experiment.weights import load_weights
from input_pipeline import images as image_data
from training import evaluation, paths

# Images that go through the network at once.
_ROWS = 256
# By their configs, as JSON: several figures of one process need it once.
_TRAINED: dict[str, "ClassifierFeatures"] = {}


class ClassifierFeatures:
  """The mean of the last feature map, and the logits; `Features`.

  `report` has `classifier_accuracy`, on the evaluation split of its own data.
  """

  def __init__(
    self, spec: str, setup: experiment.Evaluation, variables: Mapping[str, Any]
  ):
    """Evaluates the classifier.

    Args:
      spec: see `features.create`.
      setup: of a classification, on one device.
      variables: of its model.
    """
    self.spec = spec
    self.class_names = setup.task.info.class_names
    self._setup = setup
    self._variables = variables
    self.fingerprint = _fingerprint(setup.config, variables)
    with jax.set_mesh(setup.mesh):
      result = setup.task.evaluate_split(setup.mesh).run(variables)
    self.report = {"classifier_accuracy": result["accuracy"]}
    self._apply = jax.jit(self._features_and_logits)

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `Features`."""
    data = self._setup.config.data
    fit = (data.image_size, data.image_size, data.channels)
    if images.dtype != np.uint8 or images.shape[1:] != fit:
      raise ValueError(
        f"images are {images.dtype} {list(images.shape)}, but the classifier "
        f"of features={self.spec!r} is for uint8 {['n', *fit]}."
      )
    parts = [
      self._call_padded(images[first : first + _ROWS])
      for first in range(0, max(len(images), 1), _ROWS)
    ]
    features, logits = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(logits)

  def _call_padded(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    padding = [(0, _ROWS - len(images))] + [(0, 0)] * 3
    # The caller's mesh may have more devices.
    with jax.set_mesh(self._setup.mesh):
      made = self._apply(self._variables, np.pad(images, padding))
    features, logits = jax.device_get(made)
    return features[: len(images)], logits[: len(images)]

  def _features_and_logits(
    self, variables: Mapping[str, Any], images: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    task = self._setup.task
    inputs = task.normalize(images)
    maps = task.model.apply(variables, inputs, method="features")
    logits = task.model.apply(variables, maps, method="classify")
    features = maps[-1].astype(jnp.float32).mean((1, 2))
    return features, logits.astype(jnp.float32)


def trained_on(data: ml_collections.ConfigDict) -> ClassifierFeatures:
  """Trains the small classifier on the images of a config, or has it already.

  Raises:
    ValueError: for data that does not fit.
  """
  config = _config(data)
  key = config.to_json_best_effort(sort_keys=True)
  if key not in _TRAINED:
    setup = experiment.create(config, _device())
    _TRAINED[key] = ClassifierFeatures("", setup, _train(setup))
  return _TRAINED[key]


def of_run(workdir: str) -> ClassifierFeatures:
  """Takes the classifier of a run.

  Raises:
    ValueError: if there is no run of classification in `workdir`.
    CheckpointError: if the checkpoint cannot be read.
  """
  config = experiment.load_trained(workdir)
  if config.task != "classification":
    raise ValueError(
      f"features={workdir!r} is a run of {config.task}, but it must be one of "
      "classification, or '' for a classifier that is trained now."
    )
  config.mesh = common.get_config().mesh
  setup = experiment.create_evaluation(config, _device())
  return ClassifierFeatures(workdir, setup, load_weights(setup, workdir))


def _device() -> list[jax.Device]:
  # Sums over several devices have other roundings, so another fingerprint.
  return jax.local_devices()[:1]


def _config(data: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The recipe: 98 % of the digits for some 10 CPU seconds."""
  if data.get("latents"):
    raise ValueError(
      f"features='' trains on images, but config.data.latents={data.latents!r}"
      " has none: give the workdir of a run of classification as features."
    )
  config = common.get_config("classification")
  for name in set(image_data.default_config()) - {"train_transform"}:
    config.data[name] = data[name]
  config.data.mean = config.data.std = (0.5,)
  config.model = ml_collections.ConfigDict(
    dict(
      name="resnet18",
      stem_widths=(32, 32, 32),
      widths=(32, 64),
      depths=(1, 1),
      batch_norm_momentum=0.9,
    )
  )
  config.batch_size = 64
  config.train_for = "12 epochs"
  config.loss.label_smoothing = 0.1
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup = "5 percent"
  config.optimizer.weight_decay = 0.05
  return config


def _train(setup: experiment.Experiment) -> dict[str, Any]:
  batches = create_train_batches(setup)
  try:
    with jax.set_mesh(setup.mesh):
      state = setup.init()
      for _ in range(setup.clock.total_steps):
        rows = next(batches)
        batch = {name: rows[name] for name in setup.batch}
        state, _ = setup.train_step(
          state, evaluation.put_batch(batch, setup.mesh)
        )
      return jax.block_until_ready(state.variables())
  finally:
    batches.close()


def _fingerprint(
  config: ml_collections.ConfigDict, variables: Mapping[str, Any]
) -> str:
  """Of all that features depend on."""
  data = config.data
  inputs = [data.image_size, data.channels, list(data.mean), list(data.std)]
  made = hashlib.sha256()
  made.update(
    json.dumps([config.model.to_dict(), config.dtype, inputs]).encode()
  )
  for name, leaf in sorted(paths.flatten_with_names(variables).items()):
    leaf = np.asarray(leaf)
    made.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
    made.update(leaf.tobytes())
  return f"classifier-{made.hexdigest()[:16]}"
