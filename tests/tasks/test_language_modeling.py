"""Language modelling against documents that go through the model alone."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks
from configs import language
from input_pipeline import text
from tasks.language_modeling import LanguageModeling
from training import sharding

TEXTS = ("To be, or not to be: that is it.\n", "ab", "Ça va? 😀 ok\n", "q" * 40)
MODEL = dict(width=16, depth=1, heads=2)


@pytest.fixture
def config(tmp_path):
  """A model that is small, and its texts in a file."""
  path = tmp_path / "lines.jsonl"
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
  config = language.get_config("test")
  config.model.update(MODEL)
  config.data.update(
    files=str(path), eval_files=str(path), format="jsonl", length=24
  )
  return config


def create(config):
  return tasks.create(config, text.dataset_info(config.data))


def randomised(task, seed=0):
  """Variables as they are initialised, but far from uniform predictions."""
  variables = task.init(jax.random.key(seed))
  return jax.tree.map(lambda x: 4 * x, variables)


def total(task, variables):
  """What the evaluation makes of all batches."""
  step = jax.jit(task.evaluate_step)
  sums = {}
  spec = task.batch_spec(5, train=False)
  for batch in text.eval_batches(task.config.data, batch_size=5):
    arrays = {name: batch[name] for name in spec}
    for name, value in step(variables, arrays).items():
      sums[name] = sums.get(name, 0) + np.float64(value)
  return task.summarize(sums)


def test_packed_documents_are_predicted_as_if_alone(config):
  task = create(config)
  variables = randomised(task)
  model = jax.jit(task.model.apply)
  nats, right, targets = 0.0, 0, 0
  for document in TEXTS:
    # Pieces of 24 targets; each sees nothing before it.
    tokens = np.array([256, *document.encode(), 256])
    for start in range(0, len(tokens) - 1, 24):
      piece = tokens[start : start + 25]
      # What follows a token is nothing to it.
      inputs = np.pad(piece[:-1], (0, 25 - len(piece)))
      logits = model(variables, inputs[None])[0, : len(piece) - 1]
      log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
      nats -= log_p[np.arange(len(piece) - 1), piece[1:]].sum()
      right += (log_p.argmax(-1) == piece[1:]).sum()
      targets += len(piece) - 1
  size = sum(len(t.encode()) for t in TEXTS)
  result = total(task, variables)
  assert result["tokens"] == targets == size + len(TEXTS)
  assert result["bytes"] == size
  np.testing.assert_allclose(result["loss"], nats / targets, rtol=1e-5)
  np.testing.assert_allclose(result["accuracy"], right / targets)
  np.testing.assert_allclose(
    result["perplexity"], math.exp(nats / targets), 1e-4
  )
  np.testing.assert_allclose(
    result["bits_per_byte"], nats / math.log(2) / size, rtol=1e-5
  )
  assert task.report(result) == {**result}
  assert f"{result['bits_per_byte']:.4f} bits per byte" in task.describe(result)


def test_a_stream_needs_no_segments(config):
  config.data.packing = "stream"
  task = create(config)
  variables = randomised(task)
  (batch,) = text.eval_batches(config.data, batch_size=5)
  names = task.batch_spec(5, train=False)
  assert set(names) == {"tokens", "targets", "weights", "bytes"}
  logits = task.model.apply(
    variables,
    batch["tokens"],
    segments=batch["segments"],
    positions=batch["positions"],
  )
  log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
  picked = np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
  sums = task.evaluate_step(variables, {n: batch[n] for n in names})
  np.testing.assert_allclose(
    sums["loss"], -(picked * batch["weights"]).sum(), rtol=1e-5
  )


@pytest.mark.parametrize("packing", ["documents", "stream"])
def test_batches_are_as_their_spec_says(config, packing):
  config.data.packing = packing
  task = create(config)
  train = text.train_iterator(config.data, seed=0, global_batch_size=3)
  (evaluation,) = text.eval_batches(config.data, batch_size=5)
  for batch, rows, is_train in ((next(train), 3, True), (evaluation, 5, False)):
    for name, spec in task.batch_spec(rows, train=is_train).items():
      assert (batch[name].shape, batch[name].dtype) == (spec.shape, spec.dtype)


def test_sums_of_micro_batches_are_those_of_the_batch(config):
  task = create(config)
  variables = randomised(task)
  rows = next(text.train_iterator(config.data, seed=0, global_batch_size=4))
  rows = {n: rows[n] for n in task.batch_spec(4, train=True)}
  # Half a row that does not count.
  rows["weights"][1, 12:] = 0

  @jax.jit
  def gradient(batch):
    return jax.value_and_grad(
      lambda v: task.loss(v, batch, jax.random.key(0)), has_aux=True
    )(variables)

  whole, grads = gradient(rows)
  halves = [gradient({n: x[i::2] for n, x in rows.items()}) for i in (0, 1)]
  np.testing.assert_allclose(whole[0], sum(h[0][0] for h in halves), rtol=1e-6)
  weight = whole[1][1]["weight"]
  assert (
    weight == task.weight(rows) == sum(h[0][1][1]["weight"] for h in halves)
  )
  assert weight == rows["weights"].sum() < rows["weights"].size
  added = jax.tree.map(jnp.add, *(h[1] for h in halves))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    grads,
    added,
  )


def test_a_runs_tokeniser_is_all_that_a_sample_needs(config, tmp_path, capsys):
  config.data.tokenizer = "characters"
  task = create(config)
  variables = randomised(task)
  (tmp_path / "tokenizer.json").write_bytes(task.files()["tokenizer.json"])
  config.data.update(files="/nowhere", eval_files="/nowhere")
  task.adopt(config, tmp_path)
  other = tasks.create(config, LanguageModeling.sampling_info(config))
  assert other.model == task.model
  options = dict(prompt="To be", max_tokens=9, temperature=1.0, seed=3)
  other.sample(variables, **options)
  printed = capsys.readouterr().out
  assert printed.startswith("To be")
  assert len(printed) == 5 + 9
  with pytest.raises(ValueError, match="prompt='x!' has no tokens"):
    other.sample(variables, prompt="x!")


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_shows_a_sample_and_how_to_go_on(config, tmp_path, tokenizer):
  config.data.tokenizer = tokenizer
  task = create(config)
  mesh = sharding.create_mesh(config.mesh)
  evaluations = task.evaluations(mesh)
  shown = task.show(randomised(task), evaluations, str(tmp_path))
  written = (tmp_path / "samples.txt").read_text()
  assert shown.files == ("samples.txt",)
  assert written in shown.text
  assert written
  prompt = "To" if tokenizer == "characters" else "'The '"
  assert shown.commands == (
    f"python sample.py --weights={tmp_path} --prompt={prompt}",
  )


def test_the_text_is_in_the_record_of_the_run(config):
  task = create(config)
  source = task.record()["text"]
  assert source["documents"] == len(TEXTS)
  assert source["bytes"] == sum(len(t.encode()) for t in TEXTS)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model.causal": False}, "causal=False lets tokens see"),
    (
      {"model.position_encoding": "learned", "model.max_length": 23},
      "max_length=23 learned positions are fewer than data.length=24",
    ),
    ({"model.name": "maxvit_tiny_224"}, "is of kind 'image'"),
    ({"model.heads": 3}, "heads is 3, which does not divide width=16"),
  ],
)
def test_faults(config, fields, message):
  with config.unlocked():
    config.update_from_flattened_dict(fields)
    for name, value in fields.items():
      config.model[name.removeprefix("model.")] = value
  with pytest.raises(ValueError, match=message):
    create(config).init(jax.random.key(0))


def test_characters_need_a_text(config):
  config.data.tokenizer = "characters"
  with pytest.raises(ValueError, match=r"give the tokenizer\.json of a run"):
    LanguageModeling.sampling_info(config)
