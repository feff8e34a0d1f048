"""Masked diffusion against its formula, and against what is exact."""

import dataclasses
import io
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiment
import sample
import tasks
from configs import masked_diffusion as configs
from input_pipeline import sequences
from input_pipeline.sequences import records, sources
from tests.models import language
from train import train_and_evaluate

# Of the table's three tokens the joint distribution, none of them 0.
_JOINT = np.random.default_rng(3).dirichlet(np.ones(8)).reshape(2, 2, 2)


@dataclasses.dataclass(frozen=True)
class Bits:
  """A token that is given, and three of `_JOINT`."""

  shifted: bool = False
  vocabulary_size = classes = 2
  groups = ()

  def example(self, rng, split):
    number = rng.choice(8, p=_JOINT.ravel())
    tokens = np.array([1, *np.unravel_index(number, (2, 2, 2))], np.int32)
    weights = np.array([0, 1, 1, 1], np.float32)
    targets = np.roll(tokens, -1) if self.shifted else tokens
    return {"tokens": tokens, "targets": targets, "weights": weights}


class Table(nn.Module):
  """Tells each bit by what is exact, given those that are not masked."""

  @nn.compact
  def __call__(self, tokens, *, train):
    joint = jnp.asarray(_JOINT)[None]
    for place in range(3):
      seen = tokens[:, 1 + place]
      fits = (seen[:, None] == jnp.arange(2)[None]) | (seen == 2)[:, None]
      shape = [len(seen), 1, 1, 1]
      shape[1 + place] = 2
      joint = joint * fits.reshape(shape)
    sums = [joint.sum((1, 2, 3), keepdims=True)[:, 0, 0]] + [
      joint.sum(tuple({1, 2, 3} - {place})) for place in (1, 2, 3)
    ]
    told = jnp.stack([jnp.broadcast_to(x, (len(tokens), 2)) for x in sums], 1)
    # What the mask gets has to be left out.
    return jnp.pad(jnp.log(told), [(0, 0), (0, 0), (0, 1)], constant_values=9)


def small(**fields):
  config = configs.get_config("test")
  config.data.num_threads = 0
  config.update_from_flattened_dict(fields)
  return config


def create(config):
  return tasks.create(config, sequences.dataset_info(config.data))


def batch_of(task, rows=4):
  batch = next(
    sequences.train_iterator(task.config.data, seed=0, global_batch_size=rows)
  )
  spec = task.batch_spec(rows, train=True)
  return {name: jnp.asarray(batch[name]) for name in spec}


@pytest.fixture
def table(monkeypatch):
  monkeypatch.setitem(sources.SOURCES, "bits", Bits)
  config = small()
  del config.data.options
  config.data.source, config.data.options = "bits", {}
  task = create(config)
  task.model = Table()
  return task


def test_the_exact_conditionals_have_the_exact_likelihood(table):
  """Of all masks, with the integral of t^(k - 1) (1 - t)^(3 - k) as weights.

  Whatever the order in which a text is told, the conditionals' product is its
  probability; the bound of a model that has them is tight.
  """
  masks = [m for m in itertools.product((0, 1), repeat=3) if any(m)]
  for bits in itertools.product((0, 1), repeat=3):
    tokens = np.tile(np.array([1, *bits], np.int32), (7, 1))
    hidden = np.array([(0, *m) for m in masks], bool)
    k = hidden.sum(1)
    beta = [math.factorial(n - 1) * math.factorial(3 - n) / 6 for n in k]
    batch = {
      "tokens": tokens,
      "masked": np.where(hidden, table.mask, tokens),
      "scale": (hidden * np.array(beta)[:, None]).astype(np.float32),
      "weights": np.ones((7, 4), np.float32),
    }
    total, _ = table.loss({}, batch, jax.random.key(0))
    np.testing.assert_allclose(total, -np.log(_JOINT[bits]), rtol=1e-5)


def test_draws_have_that_likelihood_as_mean(table):
  rows = 20_000
  bits = (1, 0, 1)
  tokens = jnp.tile(jnp.array([[1, *bits]], jnp.int32), (rows, 1))
  weights = jnp.tile(jnp.array([[0.0, 1, 1, 1]]), (rows, 1))
  batch = {"tokens": tokens, "weights": weights}
  made = jax.jit(table.prepare)(jax.random.key(0), batch)

  @jax.vmap
  def of_row(row):
    row = {name: x[None] for name, x in row.items()}
    return table.loss({}, row, jax.random.key(0))[0]

  each = np.asarray(of_row(made))
  error = each.std() / math.sqrt(rows)
  assert error < 0.05
  assert abs(each.mean() + np.log(_JOINT[bits])) < 3 * error


def test_a_row_is_masked_with_its_own_probability():
  task = create(small())
  batch = batch_of(task)
  many = {name: jnp.tile(x, (500, 1)) for name, x in batch.items()}
  made = jax.jit(task.prepare)(jax.random.key(1), many)
  made = {name: np.asarray(x) for name, x in made.items()}
  counted = made["weights"] > 0
  hidden = made["masked"] == task.mask
  assert not hidden[~counted].any()
  np.testing.assert_array_equal(hidden, made["scale"] > 0)
  np.testing.assert_array_equal(
    made["masked"][~hidden], made["tokens"][~hidden]
  )
  rows = hidden.any(1)
  scale = made["scale"].max(1)[rows]
  # One t for a row.
  np.testing.assert_array_equal(
    np.where(hidden, made["scale"], 0)[rows], hidden[rows] * scale[:, None]
  )
  t = 1 / scale
  assert 0 < t.min() < 0.05
  assert 0.95 < t.max() <= 1
  share = hidden[rows].sum(1) / counted[rows].sum(1)
  for low in np.arange(0.1, 1, 0.2):
    near = (t > low) & (t < low + 0.2)
    assert abs((share - t)[near].mean()) < 0.03
  # Equal rows have draws of their own.
  assert len(np.unique(scale)) > 0.99 * rows.sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_and_all_gradients_are_those_of_a_restatement(dtype):
  task = create(small(dtype=dtype))
  variables = language.variables(task.model)
  batch = task.prepare(jax.random.key(2), batch_of(task))
  places = np.argwhere(np.asarray(batch["masked"]) == task.mask)
  assert len(np.unique(places[:, 0])) > 1

  def restated(params):
    logits = task.model.apply({"params": params}, batch["masked"])
    total = 0.0
    for row, place in places:
      known = logits[row, place, : task.mask]
      highest = jax.lax.stop_gradient(known.max())
      norm = highest + jnp.log(jnp.exp(known - highest).sum())
      nats = norm - known[batch["tokens"][row, place]]
      total += batch["scale"][row, place] * nats
    return total

  def own(params):
    return task.loss({"params": params}, batch, jax.random.key(0))[0]

  found = jax.jit(jax.value_and_grad(own))(variables["params"])
  expected = jax.jit(jax.value_and_grad(restated))(variables["params"])
  rough = 2e-5 if dtype == "float32" else 3e-2

  def check(a, b):
    assert np.abs(b).max() > 0
    np.testing.assert_allclose(a, b, atol=rough * np.abs(b).max())

  jax.tree.map(check, found, expected)


def test_a_batch_in_parts_has_the_loss_of_the_whole():
  task = create(small())
  variables = language.variables(task.model)
  batch = task.prepare(jax.random.key(0), batch_of(task))
  loss = jax.jit(task.loss)
  whole, (_, sums) = loss(variables, batch, jax.random.key(0))
  parts = [{n: x[i::2] for n, x in batch.items()} for i in range(2)]
  made = [
    loss(variables, part, jax.random.key(i)) for i, part in enumerate(parts)
  ]
  np.testing.assert_allclose(whole, sum(m[0] for m in made), rtol=1e-6)
  assert sums["weight"] == sum(m[1][1]["weight"] for m in made)
  assert sums["weight"] == batch["weights"].sum()


def _evaluated(task, variables, rows):
  spec = task.batch_spec(rows, train=False)
  step, totals = jax.jit(task.evaluate_step), {}
  for batch in sequences.eval_batches(task.config.data, batch_size=rows):
    sums = step(variables, {name: batch[name] for name in spec})
    for name, value in sums.items():
      totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)
  return totals


def test_evaluation_is_the_same_in_batches_of_any_size():
  task = create(small())
  variables = language.variables(task.model)
  totals = _evaluated(task, variables, 4)
  # Six examples: two of padding count for nothing.
  expected = {"weight": 0.0, "loss": 0.0, "masks": 0.0, "accuracy": 0.0}
  times = task.config.masking.evaluation_times
  for batch in sequences.eval_batches(task.config.data, batch_size=6):
    for row, number in itertools.product(range(6), range(times)):
      tokens = batch["tokens"][row]
      key = jax.random.key(0)
      for n in (batch["index"][row], number):
        key = jax.random.fold_in(key, n)
      t = (number + 0.5) / times
      drawn = jax.random.uniform(key, (len(tokens),))
      hidden = (np.asarray(drawn) < t) & (batch["weights"][row] > 0)
      logits = task.model.apply(
        variables, np.where(hidden, task.mask, tokens)[None]
      )
      known = np.array(jax.nn.log_softmax(logits[0, :, : task.mask]))
      nats = -known[np.arange(len(tokens)), tokens]
      expected["loss"] += nats[hidden].sum() / t / times
      expected["masks"] += hidden.sum()
      expected["accuracy"] += (known.argmax(-1) == tokens)[hidden].sum()
    expected["weight"] = batch["weights"].sum()
  for name, value in expected.items():
    np.testing.assert_allclose(totals[name], value, rtol=1e-5)
  again = _evaluated(task, variables, 3)
  result = task.summarize(totals)
  for name, value in task.summarize(again).items():
    np.testing.assert_allclose(value, result[name], rtol=1e-6)
  assert result["accuracy"] == expected["accuracy"] / expected["masks"]
  np.testing.assert_allclose(
    result["loss"], expected["loss"] / expected["weight"], rtol=1e-5
  )
  told = {"loss": 0.421, "accuracy": 0.812, "tokens": 107000.0}
  assert task.describe(told) == (
    "loss 0.4210 nats on 107000 tokens, accuracy 81.20% where masked"
  )
  assert task.report({**told, "steps": 3}) == told


# Compiles a training, an evaluation and a decoding step.
@pytest.mark.slow
def test_a_run_shows_records_and_samples_are_made_of_it(tmp_path, capsys):
  config = configs.get_config("test")
  workdir = str(tmp_path / "run")
  train_and_evaluate(config, workdir)
  shown = (tmp_path / "run" / "samples.txt").read_text()
  first, *skeleton = shown.split("\n\n")[0].splitlines()
  assert (
    first
    == records.Records(**config.data.options)
    .draw(np.random.default_rng((1, 0, 0)))
    .sentence
  )
  assert [line.split(":")[0] for line in skeleton] == [
    "{",
    '  "who"',
    '  "job"',
    "}",
  ]
  capsys.readouterr()
  sample.sample(config, workdir, prompt=["job XY"], steps=2)
  text = capsys.readouterr().out
  assert text.startswith('job XY\n{\n  "who": "')


def test_data_and_models_that_do_not_fit(monkeypatch):
  monkeypatch.setitem(sources.SOURCES, "bits", Bits)
  config = small()
  config.data.source = "bits"
  config.data.options = {"shifted": True}
  with pytest.raises(ValueError, match="'bits', whose targets are not its own"):
    create(config)
  for source in ("mqar", "digits_grid", "digits"):
    config.data.source, config.data.options = source, {}
    with pytest.raises(ValueError, match="targets are not its own"):
      create(config)
  with pytest.raises(ValueError, match="causal=True hides"):
    create(small(**{"model.causal": True}))
  with pytest.raises(ValueError, match=r"least=0\.0 must be"):
    experiment.create(small(**{"masking.least": 0.0}))
  config.data.source = "bits"
  with pytest.raises(ValueError, match="of which nothing is written"):
    create(config).sample({}, output=io.StringIO())


@pytest.mark.parametrize("variant", configs.VARIANTS)
def test_every_variant_has_a_model_that_sees_both_sides(variant):
  task = create(configs.get_config(variant))
  assert task.model.vocabulary_size == task.info.vocabulary_size + 1
  assert task.mask == task.info.vocabulary_size
  assert task.units_per_example == (32 if variant == "test" else 44)
  with pytest.raises(ValueError, match="has no variant 'record'"):
    configs.get_config("record")
