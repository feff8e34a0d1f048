"""Frames of moving digits, seen by a network that is trained on the spot."""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from input_pipeline import visual
from training import paths

_CLASSES = 10
# Recipe: some 40 CPU seconds for frames of 16 x 16 pixels.
_VIDEOS, _STEPS, _RATE = 16, 700, 3e-3
# Frames that go through the network at once.
_ROWS = 256
# By their data, as JSON: several figures of one process need it once.
_TRAINED: dict[str, "FrameFeatures"] = {}


class FrameNetwork(nn.Module):
  """Features, and logits of how many there are of each digit.

  The greatest value of each channel counts, wherever in the frame it is.

  Attributes:
    counts: numbers of digits there may be, from 0 on.
    widths: channels of the convolutions, of which the second halves the sides.
  """

  counts: int
  widths: tuple[int, ...] = (32, 64, 64, 128)

  @nn.compact
  def __call__(
    self, frames: jax.Array, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Maps uint8 [batch, height, width, 1] to [batch, d] and logits."""
    x = frames.astype(jnp.float32) / 127.5 - 1
    for i, width in enumerate(self.widths):
      strides = (2, 2) if i == 1 else (1, 1)
      x = nn.Conv(width, (3, 3), strides, use_bias=False)(x)
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
      x = nn.relu(x)
    x = x.max((1, 2))
    logits = nn.Dense(_CLASSES * self.counts)(x)
    return x, logits.reshape(len(x), _CLASSES, self.counts)


class FrameFeatures:
  """Features of frames, and logits of all sets of digits; `Features`.

  A set's logit is the sum of the log-probabilities of how many of each digit
  there are. `report` has `classifier_accuracy`, on frames of the evaluation
  split, where digits often hide each other.
  """

  spec = ""

  def __init__(
    self, data: ml_collections.ConfigDict, variables: Mapping[str, Any]
  ):
    """Evaluates the network.

    Args:
      data: of moving digits, `input_pipeline.visual`.
      variables: of a `FrameNetwork`.
    """
    digits = data.video.digits
    self._sets = sets(digits)
    self.class_names = tuple("+".join(map(str, row)) for row in self._sets)
    self._network = FrameNetwork(digits + 1)
    self._variables = variables
    self._apply = jax.jit(self._network.apply)
    self.fingerprint = _fingerprint(variables)
    right = [
      self(frames)[1].argmax(-1) == labels for frames, labels in examples(data)
    ]
    accuracy = float(np.concatenate(right).mean())
    self.report = {"classifier_accuracy": accuracy}

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `Features`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 1:
      raise ValueError(
        f"images are {images.dtype} {list(images.shape)}, but the classifier "
        "of frames is for uint8 [n, height, width, 1]."
      )
    parts = [
      self._call_padded(images[first : first + _ROWS])
      for first in range(0, max(len(images), 1), _ROWS)
    ]
    features, logits = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(logits)

  def _call_padded(self, images):
    padding = [(0, _ROWS - len(images))] + [(0, 0)] * 3
    made = self._apply(self._variables, np.pad(images, padding))
    features, logits = (x[: len(images)] for x in jax.device_get(made))
    found = np.asarray(jax.nn.log_softmax(logits))  # [n, 10, counts]
    counts = counts_of(self._sets)
    logits = sum(found[:, d][:, counts[:, d]] for d in range(_CLASSES))
    return features, logits


def trained_on(data: ml_collections.ConfigDict) -> FrameFeatures:
  """Trains the network on the videos of a config, or has it already."""
  key = json.dumps([data.image_size, data.video.to_dict()], sort_keys=True)
  if key not in _TRAINED:
    _TRAINED[key] = FrameFeatures(data, train(data))
  return _TRAINED[key]


def train(
  data: ml_collections.ConfigDict, steps: int | None = None
) -> dict[str, Any]:
  """Trains the network, the same bits on one machine.

  Args:
    data: of moving digits.
    steps: how many; those of the recipe if None.
  """
  steps = _STEPS if steps is None else steps
  network = FrameNetwork(data.video.digits + 1)
  side = data.image_size
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(_RATE, steps), weight_decay=0.05
  )
  init = jax.jit(network.init)
  variables = init(jax.random.key(0), jnp.zeros((1, side, side, 1), jnp.uint8))
  state = variables, optimizer.init(variables["params"])
  step = jax.jit(
    functools.partial(_step, network=network, optimizer=optimizer),
    donate_argnums=0,
  )
  batches = visual.train_iterator(data, seed=0, global_batch_size=_VIDEOS)
  try:
    for _ in range(steps):
      batch = next(batches)
      labels = _labels(batch["label"], data)
      state = step(state, *_frames(batch["image"], labels))
  finally:
    batches.close()
  return state[0]


def _step(state, frames, labels, *, network, optimizer):
  variables, optimizer_state = state
  counts = jax.nn.one_hot(labels, _CLASSES, dtype=jnp.int32).sum(1)

  def loss(params):
    (_, logits), moved = network.apply(
      {**variables, "params": params},
      frames,
      train=True,
      mutable=["batch_stats"],
    )
    each = optax.softmax_cross_entropy_with_integer_labels(logits, counts)
    return each.sum(1).mean(), moved

  gradient, moved = jax.grad(loss, has_aux=True)(variables["params"])
  updates, optimizer_state = optimizer.update(
    gradient, optimizer_state, variables["params"]
  )
  params = optax.apply_updates(variables["params"], updates)
  return {**moved, "params": params}, optimizer_state


def examples(
  data: ml_collections.ConfigDict,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Batches of frames of the evaluation split, without padding.

  Returns:
    Pairs of frames uint8 [n, height, width, 1] and numbers of sets int [n].
  """
  for batch in visual.eval_batches(data, batch_size=_ROWS // 8):
    there = batch["mask"] > 0
    labels = set_numbers(_labels(batch["label"][there], data))
    yield _frames(batch["image"][there], labels)


def sets(digits: int) -> np.ndarray:
  """All sets of so many digits, in ascending order: int [sets, digits]."""
  rows = itertools.combinations_with_replacement(range(_CLASSES), digits)
  return np.array(list(rows))


def set_numbers(labels: np.ndarray) -> np.ndarray:
  """The row of `sets` that each row of labels [n, digits] is, in any order."""
  known = sets(labels.shape[1])
  found = (np.sort(labels, 1)[:, None] == known).all(-1)
  if not found.any(1).all():
    raise ValueError(f"labels must be from 0 to {_CLASSES - 1}: {labels}.")
  return found.argmax(1)


def counts_of(rows: np.ndarray) -> np.ndarray:
  """How many of each digit there are in sets [n, digits]: int [n, 10]."""
  return (rows[..., None] == np.arange(_CLASSES)).sum(1)


def _labels(labels, data):
  return labels.reshape(len(labels), data.video.digits)


def _frames(videos, labels):
  """Frames one by one, each with the labels of its video."""
  count = videos.shape[1]
  return videos.reshape(-1, *videos.shape[2:]), labels.repeat(count, axis=0)


def _fingerprint(variables: Mapping[str, Any]) -> str:
  made = hashlib.sha256()
  for name, leaf in sorted(paths.flatten_with_names(variables).items()):
    made.update(name.encode())
    made.update(np.asarray(leaf).tobytes())
  return f"frames-{made.hexdigest()[:16]}"
