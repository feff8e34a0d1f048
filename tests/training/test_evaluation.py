import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import tasks
from input_pipeline import images as image_data
from training import evaluation, sharding

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
      task="classification",
      model=dict(name="resnet50"),
      dtype="float32",
      data=dict(channels=1, mean=(0.0,), std=(1.0,)),
      loss=dict(name=loss, label_smoothing=0.1),
    )
  )
  info = image_data.DatasetInfo(
    num_eval_examples=0, class_names=tuple("abcdefgh")
  )
  task = tasks.create(config, info)
  task.model = FixedLogits()
  return task


def evaluate(task, batches, mesh, step=None, **options):
  """As a task's evaluation does, of batches that are given."""
  totals = evaluation.sum_batches(
    jax.jit(step or task.evaluate_step),
    {},
    batches,
    mesh,
    names=("image", "label", "mask", "damaged"),
    **options,
  )
  return task.summarize(totals)


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
    rest = [(0, 0)] * (labels.ndim - 1)
    yield {
      "image": np.pad(images[start : start + size], pad + [(0, 0)] * 3),
      "label": np.pad(labels[start : start + size], pad + rest),
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
  result = evaluate(make_task(), batches_of(images, labels, 12), mesh)
  order = np.argsort(-logits, axis=1)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  # No label smoothing in evaluation.
  expected = {
    "accuracy": (order[:, 0] == labels).mean(),
    "accuracy_top5": (order[:, :5] == labels[:, None]).any(1).mean(),
    "loss": -log_p[np.arange(count), labels].mean(),
    "examples": count,
    "damaged": 0,
    "unlabelled": 0,
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
  sums = task.evaluate_step({}, batch)
  assert sums["accuracy"] == 0
  assert sums["accuracy_top5"] == 0


def test_padding_may_be_infinite(mesh):
  task = make_task()
  _, images, labels = make_examples(5)
  apply = FixedLogits().apply
  task.model.apply = lambda v, x, train: jnp.where(
    x.sum((1, 2, 3))[:, None] == 0, jnp.inf, apply(v, x, train=train)
  )
  result = evaluate(task, batches_of(images, labels, 8), mesh)
  assert np.isfinite(result["loss"])


def test_damaged_examples_are_counted_and_left_out(mesh):
  logits, images, labels = make_examples(10)
  batches = list(batches_of(images, labels, 8))
  batches[0]["mask"][[2, 5]] = 0
  batches[0]["damaged"][[2, 5]] = True
  result = evaluate(make_task(), batches, mesh)
  keep = np.delete(np.arange(10), [2, 5])
  assert (result["examples"], result["damaged"]) == (8, 2)
  assert result["accuracy"] == pytest.approx(
    (logits[keep].argmax(1) == labels[keep]).mean()
  )


def test_damaged_examples_of_all_processes_are_counted(mesh, monkeypatch):
  _, images, labels = make_examples(16)
  mine, other = batches_of(images, labels, 8)
  other["damaged"][[1, 2, 6]] = True
  mine["damaged"][3] = True
  put = jax.make_array_from_process_local_data

  def put_with_other_process(sharding, rows):
    name = next(name for name, value in mine.items() if value is rows)
    return put(sharding, np.concatenate([rows, other[name]]))

  monkeypatch.setattr(
    jax, "make_array_from_process_local_data", put_with_other_process
  )
  result = evaluate(make_task(), [mine], mesh)
  assert (result["examples"], result["damaged"]) == (16, 4)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_labels_that_are_no_classes_weigh_nothing(mesh, loss, many):
  _, images, labels = make_examples(11)
  out = [0, 4, 5, 10]
  kept = np.delete(np.arange(11), out)
  if many:
    labels = np.eye(CLASSES, dtype=np.uint8)[labels]
    labels[kept, (labels[kept].argmax(1) + 3) % CLASSES] = 1
    labels[out] = 0
  else:
    labels[out] = [-1, CLASSES, -7, 10**9]
  among = jnp.arange(CLASSES) != 2
  task = make_task(loss)
  step = functools.partial(task.evaluate_classes, among=among)
  result, expected = (
    evaluate(task, batches_of(*arrays, 8), mesh, step)
    for arrays in ((images, labels), (images[kept], labels[kept]))
  )
  assert (result.pop("unlabelled"), expected.pop("unlabelled")) == (4, 0)
  assert result["examples"] == 7
  for name, value in expected.items():
    np.testing.assert_allclose(result[name], value, rtol=1e-6, err_msg=name)
  text = task.describe(result | {"unlabelled": 4})
  assert text.endswith("on 7 examples, 4 without a class left out")


def test_a_split_without_any_class_says_so(mesh):
  _, images, labels = make_examples(3)
  batches = batches_of(images, np.full_like(labels, -1), 4)
  with pytest.raises(ValueError, match=r"no usable.*unlabelled 3, damaged 0"):
    evaluate(make_task(), batches, mesh)


def test_nothing_to_evaluate_is_an_error(mesh):
  with pytest.raises(ValueError, match="no usable example"):
    evaluate(make_task(), [], mesh)


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
    evaluate(make_task(), watched(), mesh, should_stop=should_stop)
  assert len(taken) == 3


def test_probabilities_follow_the_loss():
  _, images, _ = make_examples(3)
  softmax = make_task("softmax").predict({}, images)
  np.testing.assert_allclose(softmax.sum(-1), 1, rtol=1e-5)
  sigmoid = make_task("sigmoid").predict({}, images)
  logits = images[:, 0, :CLASSES, 0].astype(float)
  np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-logits)), rtol=1e-5)


class Measured:
  """An evaluation that counts its runs."""

  def __init__(self, name):
    self.name, self.runs = name, 0

  def run(self, variables, *, should_stop):
    if should_stop():
      raise evaluation.EvaluationInterrupted
    self.runs += 1
    return {"loss": float(self.runs)}


def test_evaluations_run_in_turn_and_each_is_written():
  both = [Measured("eval"), Measured("samples")]
  written = []
  result = evaluation.run_due(
    both, {}, lambda: False, lambda *row: written.append(row)
  )
  assert result == {"loss": 1.0, "samples/loss": 1.0}
  assert written == [("eval", {"loss": 1.0}), ("samples", {"loss": 1.0})]
  with pytest.raises(evaluation.EvaluationInterrupted):
    evaluation.run_due(
      both, {}, lambda: both[0].runs == 2, lambda *row: written.append(row)
    )
  assert [each.runs for each in both] == [2, 1]
