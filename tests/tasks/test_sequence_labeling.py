"""Labels of sequences against sums that are written out, and a run."""

import dataclasses

import jax
import numpy as np
import pytest

import experiment
import tasks
from configs import sequences as configs
from input_pipeline import sequences
from input_pipeline.sequences import sources
from tests.models import language


@dataclasses.dataclass(frozen=True)
class Made:
  """Labels of another number than tokens, in all the forms there are."""

  whole: bool = False
  soft: bool = False
  padded: bool = False
  by_place: bool = False
  length: int = 9
  vocabulary_size: int = 6
  classes: int = 3
  groups: tuple = ("even", "odd", "none")

  def example(self, rng, split):
    length = 1 if self.whole else self.length
    example = {
      "targets": rng.integers(self.classes, size=length).astype(np.int32),
      "weights": rng.integers(self.whole, 3, length).astype(np.float32),
      "group": np.int32(rng.integers(2, size=length if self.by_place else ())),
    }
    shape = (self.length, self.vocabulary_size)
    if self.soft:
      example["inputs"] = rng.random(shape, np.float32)
    else:
      tokens = rng.integers(self.vocabulary_size, size=self.length)
      example["tokens"] = tokens.astype(np.int32)
    if self.padded:
      kept = int(rng.integers(2, self.length))
      places = np.arange(self.length, dtype=np.int32)
      example["positions"] = np.where(places < kept, places, -1)
    return example


FORMS = {
  "places": {},
  "places, by place": {"by_place": True},
  "whole": {"whole": True},
  "whole, padded": {"whole": True, "padded": True},
  "soft": {"soft": True, "whole": True},
}


@pytest.fixture
def create(monkeypatch):
  monkeypatch.setitem(sources.SOURCES, "made", Made)

  def create(causal=True, **options):
    config = configs.get_config("mqar")
    config.data.source = "made"
    config.data.num_threads = 0
    config.data.options = options
    config.data.eval_examples = 11
    config.model.update(width=8, depth=1, heads=2, mlp_width=8)
    config.model.update(tied_head=False, causal=causal)
    return tasks.create(config, sequences.dataset_info(config.data))

  return create


@pytest.mark.parametrize("form", FORMS)
def test_sums_are_those_of_one_label_after_another(create, form):
  task = create(causal=form != "places", **FORMS[form])
  variables = language.variables(task.model)
  sums, totals = {}, {}
  spec = task.batch_spec(4, train=False)
  step, model = jax.jit(task.evaluate_step), jax.jit(task.model.apply)
  for batch in sequences.eval_batches(task.config.data, batch_size=4):
    for name, array in spec.items():
      assert (batch[name].shape, batch[name].dtype) == (
        array.shape,
        array.dtype,
      )
    made = step(variables, {name: batch[name] for name in spec})
    for name, value in made.items():
      totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)
    for row in range(4):
      own = {name: x[row] for name, x in batch.items()}
      _add_row(lambda inputs: model(variables, inputs)[0], own, sums)
  result = task.summarize(totals)
  weight = sums["weight"]
  assert result["labels"] == weight > 0
  np.testing.assert_allclose(result["loss"], sums["loss"] / weight, rtol=1e-5)
  np.testing.assert_allclose(result["accuracy"], sums["right"] / weight)
  for group, name in enumerate(("even", "odd")):
    np.testing.assert_allclose(
      result[f"accuracy_{name}"],
      sums[f"right {group}"] / sums[f"weight {group}"],
      rtol=1e-6,
    )
  assert "accuracy_none" not in result
  assert task.report(result) == result
  assert f"on {weight:g} labels" in task.describe(result)


def _add_row(model, row, sums):
  """Adds a row that goes through the model by itself, without padding."""
  length = (row["positions"] >= 0).sum() if "positions" in row else 9
  inputs = row["inputs"] if "inputs" in row else row["tokens"]
  logits = np.asarray(model(inputs[None, :length]), np.float64)
  if row["targets"].size == 1:
    logits = logits.mean(0, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  for place, (target, weight) in enumerate(
    zip(row["targets"], row["weights"], strict=True)
  ):
    group = row["group"][place] if row["group"].ndim else row["group"]
    right = weight * (log_p[place].argmax() == target)
    for name, value in (
      ("loss", -weight * log_p[place, target]),
      ("weight", weight),
      ("right", right),
      (f"weight {group}", weight),
      (f"right {group}", right),
    ):
      sums[name] = sums.get(name, 0.0) + value


def test_what_is_minimised_is_what_is_evaluated(create):
  task = create(whole=True)
  variables = language.variables(task.model)
  batch = next(
    sequences.train_iterator(task.config.data, seed=0, global_batch_size=5)
  )
  spec = task.batch_spec(5, train=True)
  assert "group" not in spec
  loss = jax.jit(
    lambda variables, batch: task.loss(variables, batch, jax.random.key(0))
  )
  value, (collections, sums) = loss(variables, {n: batch[n] for n in spec})
  expected = task.evaluate_step(variables, batch)
  assert collections == {}
  for name in ("loss", "weight"):
    np.testing.assert_allclose(sums[name], expected[name], rtol=1e-6)
  assert value == sums["loss"]
  assert task.weight(batch) == sums["weight"]


def test_labels_that_are_not_tokens_need_a_head(create):
  task = create()
  task.config.model.tied_head = True
  with pytest.raises(ValueError, match=r"classes is 3.*tied_head=False"):
    experiment.create(task.config)


@pytest.mark.parametrize("variant", configs.VARIANTS)
def test_every_variant_is_created(variant):
  config = configs.get_config(variant)
  setup = experiment.create(config, jax.devices()[:1])
  assert setup.clock.total_steps > 0
  assert variant.startswith(config.data.source)
