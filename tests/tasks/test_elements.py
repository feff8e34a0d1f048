"""Accuracy of elements: the sum of probabilities over a symbol and its gap."""

import jax
import numpy as np
import pytest

import tasks
from configs import sequences as configs
from input_pipeline import sequences
from tests.models import language


@pytest.fixture(scope="module")
def task():
  config = configs.get_config("grammar")
  config.data.num_threads = 0
  config.data.options.update(elements=7, length=40, noise=0.1)
  config.data.eval_examples = 10
  config.model.update(width=8, depth=1, heads=2, mlp="none")
  return tasks.create(config, sequences.dataset_info(config.data))


def test_is_the_argmax_of_sums_of_probabilities(task):
  assert "elements" not in task.batch_spec(4, train=True)
  spec = task.batch_spec(4, train=False)
  variables = language.variables(task.model)
  step = jax.jit(task.evaluate_step)
  apply = jax.jit(task.model.apply)
  totals, right, places_right = {}, [], []
  # The last batch has two rows of padding.
  for batch in sequences.eval_batches(task.config.data, batch_size=4):
    for name, value in step(variables, {n: batch[n] for n in spec}).items():
      totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)
    logits = np.asarray(apply(variables, batch["inputs"]), np.float64)
    for row in range(4):
      if batch["index"][row] < 0:
        continue
      element, target = batch["elements"][row], batch["targets"][row]
      for number in range(element.max() + 1):
        places = np.flatnonzero(element == number)
        own = np.exp(logits[row, places])
        told = (own / own.sum(axis=1, keepdims=True)).sum(axis=0).argmax()
        assert len(set(target[places])) == 1
        right.append(told == target[places[0]])
        places_right += (own.argmax(axis=1) == target[places]).tolist()
  result = task.summarize(totals)
  assert totals["element_weight"] == len(right) > 60
  assert result["labels"] == len(places_right)
  np.testing.assert_allclose(result["element_accuracy"], np.mean(right))
  np.testing.assert_allclose(result["accuracy"], np.mean(places_right))
  assert 0 < np.mean(right) != np.mean(places_right)
  assert "% of elements" in task.describe(result)
  assert task.report(result) == result
