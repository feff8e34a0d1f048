import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from training import classification, evaluation, sharding

CLASSES = 8


class FixedLogits:
  """Logits that are the first pixels of the image."""

  def apply(self, variables, images, *, train):
    del variables
    assert not train
    return images[:, 0, :CLASSES, 0] * 255


def make_task(loss="softmax"):
  config = ml_collections.ConfigDict(
    dict(
      data=dict(channels=1, mean=(0.0,), std=(1.0,)),
      loss=dict(name=loss, label_smoothing=0.1),
    )
  )
  return classification.Classification(
    FixedLogits(), config, num_classes=CLASSES
  )


def make_examples(count):
  rng = np.random.default_rng(0)
  logits = rng.permuted(np.tile(np.arange(CLASSES), (count, 1)), axis=1)
  images = np.zeros((count, 2, CLASSES, 1), np.uint8)
  images[:, 0, :, 0] = logits
  return logits, images, rng.integers(0, CLASSES, count, np.int32)


def batches_of(images, labels, size):
  for start in range(0, len(images), size):
    count = len(images[start : start + size])
    pad = [(0, size - count)]
    yield {
      "image": np.pad(images[start : start + size], pad + [(0, 0)] * 3),
      "label": np.pad(labels[start : start + size], pad),
      "mask": np.pad(np.ones(count, np.float32), pad),
      "damaged": np.zeros(size, bool),
    }


@pytest.fixture
def mesh():
  return sharding.create_mesh(
    ml_collections.ConfigDict(dict(data=4, fsdp=1, model=1))
  )


@pytest.mark.parametrize("count", [1, 7, 12, 29])
def test_counts_every_example_once(count, mesh):
  logits, images, labels = make_examples(count)
  result = evaluation.evaluate(
    jax.jit(make_task().evaluate), {}, batches_of(images, labels, 12), mesh
  )
  order = np.argsort(-logits, axis=1)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  # No label smoothing in evaluation.
  expected = {
    "accuracy": (order[:, 0] == labels).mean(),
    "accuracy_top5": (order[:, :5] == labels[:, None]).any(1).mean(),
    "loss": -log_p[np.arange(count), labels].mean(),
    "examples": count,
    "damaged": 0,
  }
  assert result == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_constant_or_nan_output_scores_nothing(value):
  class Constant:
    def apply(self, variables, images, *, train):
      return jnp.full((len(images), CLASSES), value)

  task = make_task()
  task.model = Constant()
  _, images, labels = make_examples(6)
  batch = next(batches_of(images, labels, 6))
  sums = task.evaluate({}, batch)
  assert sums["accuracy"] == 0
  assert sums["accuracy_top5"] == 0


def test_padding_may_be_infinite(mesh):
  task = make_task()
  _, images, labels = make_examples(5)
  apply = FixedLogits().apply
  task.model.apply = lambda v, x, train: jnp.where(
    x.sum((1, 2, 3))[:, None] == 0, jnp.inf, apply(v, x, train=train)
  )
  result = evaluation.evaluate(
    jax.jit(task.evaluate), {}, batches_of(images, labels, 8), mesh
  )
  assert np.isfinite(result["loss"])


def test_damaged_examples_are_counted_and_left_out(mesh):
  logits, images, labels = make_examples(10)
  batches = list(batches_of(images, labels, 8))
  batches[0]["mask"][[2, 5]] = 0
  batches[0]["damaged"][[2, 5]] = True
  result = evaluation.evaluate(jax.jit(make_task().evaluate), {}, batches, mesh)
  keep = np.delete(np.arange(10), [2, 5])
  assert (result["examples"], result["damaged"]) == (8, 2)
  assert result["accuracy"] == pytest.approx(
    (logits[keep].argmax(1) == labels[keep]).mean()
  )


def test_nothing_to_evaluate_is_an_error(mesh):
  with pytest.raises(ValueError, match="no usable example"):
    evaluation.evaluate(None, {}, [], mesh)


def test_stops_between_batches_when_asked(mesh):
  _, images, labels = make_examples(40)
  polled = []

  def should_stop():
    polled.append(True)
    return len(polled) == 3

  taken = []

  def watched():
    for batch in batches_of(images, labels, 8):
      taken.append(batch)
      yield batch

  with pytest.raises(evaluation.EvaluationInterrupted):
    evaluation.evaluate(
      jax.jit(make_task().evaluate),
      {},
      watched(),
      mesh,
      should_stop=should_stop,
    )
  assert len(taken) == 3


def test_probabilities_follow_the_loss():
  _, images, _ = make_examples(3)
  softmax = make_task("softmax").predict({}, images)
  np.testing.assert_allclose(softmax.sum(-1), 1, rtol=1e-5)
  sigmoid = make_task("sigmoid").predict({}, images)
  logits = images[:, 0, :CLASSES, 0].astype(float)
  np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-logits)), rtol=1e-5)
