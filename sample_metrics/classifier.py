"""A classifier of ours as feature network: of a run, or trained on the spot."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
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
from sample_metrics import reference
from training import evaluation, paths, sharding

# Images that go through the network at once.
_ROWS = 256
# Pixels of the side that the small classifier gets at least.
_LEAST_SIDE = 32
_TRAIN_FOR = "12 epochs"
# By their configs, as JSON: several figures of one process need it once.
_TRAINED: dict[str, "ClassifierFeatures"] = {}


class ClassifierFeatures:
  """The mean of the last feature map, and the logits; `Features`.

  Images of another size than the classifier's are resized, bilinear. `report`
  has `classifier_accuracy`, on real images that it was not trained on.
  """

  def __init__(
    self,
    spec: str,
    setup: experiment.Evaluation,
    variables: Mapping[str, Any],
    data: ml_collections.ConfigDict,
  ):
    """Evaluates the classifier.

    Args:
      spec: see `features.create`.
      setup: of a classification, on one device.
      variables: of its model.
      data: images to evaluate it on, of `data.eval_split`.
    """
    self.spec = spec
    self.class_names = setup.task.info.class_names
    self._setup = setup
    self._variables = variables
    self.fingerprint = _fingerprint(setup.config, variables)
    self._apply = jax.jit(self._features_and_logits)
    right = [
      self(images)[1].argmax(-1) == labels
      for images, labels in reference.examples(data, data.eval_split)
    ]
    accuracy = float(np.concatenate(right).mean())
    self.report = {"classifier_accuracy": accuracy}

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `Features`."""
    channels = self._setup.config.data.channels
    fits = images.ndim == 4 and images.shape[-1] == channels
    if images.dtype != np.uint8 or not fits:
      raise ValueError(
        f"images are {images.dtype} {list(images.shape)}, but the classifier "
        f"of features={self.spec!r} is for uint8 [n, height, width, {channels}]"
        "."
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
    side = self._setup.config.data.image_size
    inputs = task.normalize(images)
    shape = (len(inputs), side, side, inputs.shape[-1])
    inputs = jax.image.resize(inputs, shape, "bilinear")
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
  key = json.dumps([config.to_json(), data.image_size], sort_keys=True)
  if key not in _TRAINED:
    with _alone(config) as device:
      setup = experiment.create(config, device)
      _TRAINED[key] = ClassifierFeatures("", setup, _train(setup), data)
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
  with _alone(config) as device:
    setup = experiment.create_evaluation(config, device)
    variables = load_weights(setup, workdir)
    return ClassifierFeatures(workdir, setup, variables, config.data)


@contextlib.contextmanager
def _alone(config: ml_collections.ConfigDict) -> Iterator[list[jax.Device]]:
  """Gives one device, in place of the mesh that the caller has set.

  Sums over several devices have other roundings, so another fingerprint.
  """
  device = jax.local_devices()[:1]
  with jax.set_mesh(sharding.create_mesh(config.mesh, device)):
    yield device


def _config(data: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The recipe, of some 10 CPU seconds for the digits."""
  config = common.get_config("classification")
  for name in set(image_data.default_config()) - {"train_transform"}:
    config.data[name] = data[name]
  # Smaller images would have no size left after the strides.
  config.data.image_size = max(data.image_size, _LEAST_SIDE)
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
  config.train_for = _TRAIN_FOR
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup = "5 percent"
  config.optimizer.weight_decay = 0.05
  return config


def _train(setup: experiment.Experiment) -> dict[str, Any]:
  batches = create_train_batches(setup)
  try:
    state = setup.init()
    for _ in range(setup.clock.total_steps):
      rows = next(batches)
      batch = {name: rows[name] for name in setup.batch}
      batch = evaluation.put_batch(batch, setup.mesh)
      state, _ = setup.train_step(state, batch)
    return state.variables()
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
