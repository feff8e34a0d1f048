"""The task of questions about images and its configs; a study trains it."""

import jax
import numpy as np
import pytest

import tasks
from configs import vision_language as configs
from input_pipeline import sequences

SMALL = {
  "width": 8,
  "depth": 1,
  "heads": 2,
  "mlp_width": 8,
  "vision_levels": (0, 1),
  "vision": {
    "width": 8,
    "depth": 1,
    "heads": 2,
    "hidden_width": 8,
    "patch_size": 4,
    "image_size": 32,
    "class_token": False,
  },
}


def _config(variant):
  config = configs.get_config(variant)
  config.model.update(SMALL)
  config.data.eval_examples = 6
  config.data.options.questions = 3
  config.batch_size = config.eval_batch_size = 4
  return config


@pytest.fixture(scope="module")
def task():
  config = _config("digits_grid_compressed")
  return tasks.create(config, sequences.dataset_info(config.data))


def test_sums_are_those_of_answers(task):
  variables = jax.jit(task.init)(jax.random.key(0))
  (batch, *_) = sequences.eval_batches(task.config.data, batch_size=4)
  batch = {name: np.asarray(x) for name, x in batch.items()}
  sums = jax.jit(task.evaluate_step)(variables, batch)
  images = batch["image"] / np.float32(127.5) - 1
  logits = jax.jit(task.model.apply)(variables, batch["tokens"], images)
  logits = np.asarray(logits)
  log = np.array(jax.nn.log_softmax(logits))
  loss, right, by_group = 0.0, 0, np.zeros((4, 2))
  for row, column in zip(*np.nonzero(batch["weights"]), strict=True):
    target = batch["targets"][row, column]
    told = logits[row, column].argmax() == target
    loss -= log[row, column, target]
    right += told
    by_group[batch["group"][row, column]] += (1, told)
  assert sums["weight"] == 12
  np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
  assert sums["accuracy"] == right
  np.testing.assert_array_equal(sums["group_weight"], by_group[:, 0])
  np.testing.assert_array_equal(sums["group_accuracy"], by_group[:, 1])
  trained, (_, own) = jax.jit(task.loss)(variables, batch, jax.random.key(1))
  np.testing.assert_allclose(trained, loss, rtol=1e-5)
  assert own["weight"] == 12
  assert task.units_per_example == 3


def test_images_behind_words():
  """Loss and sums are of the rows as they are, each with its image's place."""
  config = _config("digits_grid_compressed")
  config.data.options.preamble = 3
  task = tasks.create(config, sequences.dataset_info(config.data))
  variables = jax.jit(task.init)(jax.random.key(0))
  (batch, *_) = sequences.eval_batches(task.config.data, batch_size=4)
  batch = {name: np.asarray(x) for name, x in batch.items()}
  assert len(set(batch["image_start"].tolist())) > 1
  images = batch["image"] / np.float32(127.5) - 1
  apply = jax.jit(task.model.apply)

  def loss_at(starts):
    logits = apply(variables, batch["tokens"], images, starts)
    log = np.asarray(jax.nn.log_softmax(logits))
    told = np.take_along_axis(log, batch["targets"][..., None], -1)[..., 0]
    return -(told * batch["weights"]).sum()

  loss = loss_at(batch["image_start"])
  assert abs(loss - loss_at(0 * batch["image_start"])) > 1e-4
  sums = jax.jit(task.evaluate_step)(variables, batch)
  np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
  trained, _ = jax.jit(task.loss)(variables, batch, jax.random.key(1))
  np.testing.assert_allclose(trained, loss, rtol=1e-5)


def test_hallucination_is_of_absent_digits(task):
  totals = {
    "weight": np.float64(10),
    "loss": np.float64(5),
    "accuracy": np.float64(6),
    "group_weight": np.array([2.0, 2.0, 2.0, 4.0]),
    "group_accuracy": np.array([2.0, 1.0, 2.0, 1.0]),
  }
  result = task.summarize(totals)
  assert result["accuracy"] == 0.6
  assert result["accuracy_how_many"] == 0.5
  assert result["hallucination"] == 0.75
  assert task.describe(result) == ("accuracy 60.00%, loss 0.5000 on 10 answers")


@pytest.mark.parametrize("variant", configs.VARIANTS)
def test_every_variant_has_a_model(variant):
  config = configs.get_config(variant)
  made = tasks.create(config, sequences.dataset_info(config.data))
  variables = jax.eval_shape(made.init, jax.random.key(0))
  count = sum("remembers" in name for name in variables["params"])
  assert count == (3 if variant == "digits_grid_remember" else 0)


def test_data_without_images_are_refused():
  config = _config("digits_grid")
  config.data = sequences.default_config()
  with pytest.raises(ValueError, match="'mqar', which has no images"):
    tasks.create(config, sequences.dataset_info(config.data))


def test_an_unknown_variant():
  with pytest.raises(ValueError, match="has no variant 'digit_grid'"):
    configs.get_config("digit_grid")
