"""Images with several labels or none, as ImageNet ReaL has them."""

import jax
import numpy as np
import pytest

import experiment
from configs import digits
from eval import evaluate
from input_pipeline import images
from input_pipeline.images import class_subset, reader, source


@pytest.fixture
def config(write_tiny, encoded):
  config = digits.get_config("tiny")
  config.data.update(
    name="tiny",
    data_dir=str(write_tiny(encoded)),
    label="all_labels",
    channels=3,
    train_split="test",
    eval_split="train",
    eval_transform="resize(method=bilinear)",
  )
  config.eval_batch_size = 4
  return config


def test_batches(config):
  batches = list(images.eval_batches(config.data, batch_size=4))
  joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  assert joined["label"].dtype == np.uint8
  labels = [[1, 0], [0, 0], [1, 1], [0, 1], [0, 0], [1, 1]]
  np.testing.assert_array_equal(joined["label"][:6], labels)
  np.testing.assert_array_equal(joined["mask"], [1] * 10 + [0] * 2)
  np.testing.assert_array_equal(joined["index"], [*range(10), -1, -1])
  # What has no label is not damaged.
  assert not joined["damaged"].any()


# Compiles and evaluates a network.
@pytest.mark.slow
def test_right_is_any_of_them(config):
  built = experiment.create_evaluation(config)
  result = evaluate(config, "random")
  (batch,) = images.eval_batches(config.data, batch_size=10)
  variables = built.init_variables()
  probabilities = jax.jit(built.task.predict)(variables, batch["image"])
  labels = [{0}, set(), {0, 1}, {1}, set(), {0, 1}, {0}, set(), {0, 1}, {1}]
  right = [
    int(guess) in labels
    for guess, labels in zip(probabilities.argmax(-1), labels, strict=True)
    if labels
  ]
  assert (result["examples"], result["unlabelled"]) == (7, 3)
  assert result["accuracy"] == pytest.approx(np.mean(right))
  losses = [
    -np.mean([np.log(p[label]) for label in labels])
    for p, labels in zip(probabilities, labels, strict=True)
    if labels
  ]
  assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


# Compiles and evaluates a network.
@pytest.mark.slow
def test_the_best_of_them_is_ranked(config):
  config.data.update(name="digits", label="label")
  config.data.update(train_split="train", eval_split="test")
  task = experiment.create_evaluation(config).task
  variables = jax.jit(task.init)(jax.random.key(3))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (40, 16, 16, 3), np.uint8),
    "label": (rng.random((40, 10)) < 0.15).astype(np.uint8),
  }
  labelled = batch["label"].any(-1)
  assert 0 < labelled.sum() < 40
  batch |= {"mask": np.ones(40, np.float32), "damaged": np.zeros(40, bool)}
  sums = jax.jit(task.evaluate_classes)(variables, batch)
  probabilities = jax.jit(task.predict)(variables, batch["image"])
  best = np.argsort(-probabilities, -1)
  hits = np.take_along_axis(batch["label"], best, -1)
  assert sums["weight"] == labelled.sum()
  assert sums["unlabelled"] == 40 - labelled.sum()
  assert sums["accuracy"] == hits[:, 0].sum()
  assert sums["accuracy_top5"] == hits[:, :5].any(-1).sum()
  examples = batch["label"].sum(0)
  np.testing.assert_array_equal(sums["class_examples"], examples)


def test_what_they_cannot_do(config):
  config.data.train_split = "train"
  with pytest.raises(ValueError, match="evaluation only"):
    images.train_iterator(config.data, seed=0, global_batch_size=4)
  with pytest.raises(ValueError, match="may have several labels"):
    images.present_classes(config.data)
  config.data.classes = (1,)
  with pytest.raises(ValueError, match="may have several labels"):
    images.eval_batches(config.data, batch_size=4)
  config.data.label = "id"
  with pytest.raises(ValueError, match=r"called id as config.data.label says"):
    source.open_source(config.data, "train")


@pytest.mark.parametrize("many", [False, True])
def test_numbers_that_are_no_classes_are_no_labels(encoded, monkeypatch, many):
  labels = [-1, 1, 3, 4, 1]
  if many:
    labels = [[-1], [1, -1], np.array([], int), [7, 3, 1], [-9, 4]]
  opened = source.Source(
    name="competition",
    split="test",
    class_names=("ant", "bee", "cat", "dog"),
    image_shape=(None, None, 3),
    records=[{"image": encoded[0], "label": label} for label in labels],
    many_labels=many,
  )
  config = images.default_config()
  read = reader.Reader(opened, config, "eval_transform")
  examples = [read(i, np.random.default_rng(0)) for i in range(5)]
  # The task, which counts them, takes out those without a class.
  assert all(example["mask"] == 1 for example in examples)
  encoded = np.stack([example["label"] for example in examples])
  if not many:
    np.testing.assert_array_equal(encoded, labels)
    monkeypatch.setattr(class_subset, "open_source", lambda *_: opened)
    present = images.present_classes(config)
    np.testing.assert_array_equal(present, [False, True, False, True])
    subset = class_subset.ClassSubset(opened, (3, 1))
    np.testing.assert_array_equal(subset.read_labels(), [1, 0, 1])
    return
  bees, dogs = [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]
  np.testing.assert_array_equal(
    encoded, np.stack([[0] * 5, bees, [0] * 5, dogs], 1)
  )
