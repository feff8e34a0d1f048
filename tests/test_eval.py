"""eval.py: classes, and what it does without."""

import csv

import jax
import numpy as np
import pytest

import experiment
from configs import digits
from eval import evaluate
from input_pipeline import images


@pytest.fixture
def config(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.getbasetemp()))
  return digits.get_config("tiny")


# Compiles and evaluates a network.
@pytest.mark.slow
def test_classes_add_up(config, tmp_path):
  path = str(tmp_path / "classes.csv")
  result = evaluate(config, "random", per_class=path)
  with open(path) as file:
    rows = list(csv.DictReader(file))
  assert [row["name"] for row in rows] == list("0123456789")
  assert sum(int(row["examples"]) for row in rows) == 360
  correct = sum(int(row["correct"]) for row in rows)
  assert correct / 360 == pytest.approx(result["accuracy"])
  row = max(rows, key=lambda row: int(row["correct"]))
  accuracy = int(row["correct"]) / int(row["examples"])
  assert float(row["accuracy"]) == pytest.approx(accuracy, abs=1e-4)


# Compiles and evaluates a network.
@pytest.mark.slow
def test_classes_are_those_of_the_predictions(config):
  built = experiment.create(config)
  variables = jax.jit(built.task.init)(jax.random.key(3))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (12, 16, 16, 1), np.uint8),
    "label": rng.integers(0, 10, 12).astype(np.int32),
    "mask": np.arange(12) % 3 > 0,
  }
  batch["mask"] = batch["mask"].astype(np.float32)
  batch["damaged"] = batch["mask"] == 0
  sums = jax.jit(built.task.evaluate_classes)(variables, batch)
  probabilities = jax.jit(built.task.predict)(variables, batch["image"])
  predicted = np.argmax(probabilities, -1)
  for label in range(10):
    here = (batch["label"] == label) & (batch["mask"] > 0)
    assert sums["class_examples"][label] == here.sum()
    assert sums["class_correct"][label] == (predicted[here] == label).sum()


# Compiles and evaluates a network.
@pytest.mark.slow
def test_among_the_classes_that_occur(config, tmp_path):
  config.data.eval_split = "test[:8]"
  config.loss.name = "softmax"
  built = experiment.create(config)
  (batch,) = images.eval_batches(config.data, batch_size=8)
  present = sorted(set(batch["label"].tolist()))
  assert 1 < len(present) < 10
  variables = built.init().variables()
  probabilities = jax.jit(built.task.predict)(variables, batch["image"])
  chosen = np.array(present)[probabilities[:, present].argmax(-1)]
  share = probabilities / probabilities[:, present].sum(-1, keepdims=True)
  loss = -np.mean(np.log(share[np.arange(8), batch["label"]]))
  result = evaluate(config, "random", among_present=True)
  assert result["accuracy"] == pytest.approx((chosen == batch["label"]).mean())
  assert result["loss"] == pytest.approx(loss, rel=1e-4)


def test_evaluation_needs_nothing_of_training(config):
  """As with a published recipe on a data set of one's own."""
  config.data.update(eval_split="test[:12]", train_split="elsewhere")
  config.eval_batch_size = 12
  config.batch_size, config.accumulation_steps = 7, 3
  config.train_for, config.optimizer.warmup = "1 percent", "10_000 steps"
  config.optimizer.name = "none"
  config.optimizer.learning_rate_rules = (("matches nothing", 1.0),)
  assert evaluate(config, "random")["examples"] == 12


@pytest.mark.parametrize(
  ("channels", "field", "value"),
  [
    (1, "mean", (0.5, 0.5, 0.5)),
    (3, "mean", (0.5, 0.5)),
    (1, "std", (0.5, 0.5, 0.5)),
    (1, "std", (0.0,)),
    (1, "mean", (float("nan"),)),
  ],
)
def test_statistics_that_do_not_fit_the_channels(
  config, channels, field, value
):
  config.data.update({"channels": channels, field: value})
  with pytest.raises(ValueError, match=rf"data\.{field}=.*channels={channels}"):
    evaluate(config, "random")
