"""A language model from a text file to a sample, in this process."""

import json
import pathlib

import pytest

import experiment
import train
from configs import language
from eval import evaluate, summarize
from sample import sample


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.txt"
  path.write_text("The cat sat on the mat. \U0001f600\n" * 60)
  return path


# Of a fixture, so that it is compiled and trained once.
@pytest.fixture(scope="module")
def finished(text_file, tmp_path_factory):
  """One run with a vocabulary of its own."""
  config = language.get_config("test")
  config.data.update(files=str(text_file), tokenizer="characters", length=16)
  config.eval_batch_size = 16
  config.optimizer.learning_rate = 3e-2
  config.train_for = "40 steps"
  config.evaluate_every = config.checkpoint.every = "20 steps"
  workdir = tmp_path_factory.mktemp("language")
  train.train_and_evaluate(config, str(workdir))
  return workdir


def test_a_run_has_its_numbers_and_a_sample(finished):
  lines = (finished / "metrics.jsonl").read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if "eval/loss" in row]
  assert [row["step"] for row in rows] == [20, 40]
  first, last = rows
  assert last["eval/loss"] < first["eval/loss"] < 3
  # Of 26 characters a line; the first of all is not predicted.
  assert last["eval/tokens"] == 155
  assert last["eval/bytes"] > last["eval/tokens"]
  assert last["eval/bits_per_byte"] == pytest.approx(
    last["eval/loss"] * 1.442695 * last["eval/tokens"] / last["eval/bytes"]
  )
  record = json.loads((finished / "run.json").read_text())[-1]
  assert record["task"]["text"]["documents"] == 1
  assert len((finished / "samples.txt").read_text()) > 16


# Compiles the evaluation and the decoding of a run.
@pytest.mark.slow
def test_a_run_is_evaluated_and_sampled_with_what_it_keeps(
  finished, text_file, capsys
):
  config = experiment.load_trained(str(finished))
  result = evaluate(config, str(finished))
  line = summarize(config, result)
  last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
  assert line["model"] == "transformer"
  for name in ("loss", "bits_per_byte", "tokens"):
    assert line[name] == pytest.approx(last[f"eval/{name}"], rel=1e-6)
  moved = text_file.rename(text_file.with_name("moved.txt"))
  capsys.readouterr()
  try:
    sample(config, str(finished), prompt="The cat", max_tokens=17, seed=1)
    printed = capsys.readouterr()
    assert printed.out.startswith("The cat")
    assert len(printed.out) == 7 + 17
    assert "tokens/s" in printed.err
    with pytest.raises(ValueError, match="which does not exist"):
      evaluate(config, str(finished))
  finally:
    moved.rename(text_file)


def test_another_vocabulary_than_the_runs_is_refused(finished, text_file):
  config = experiment.load_trained(str(finished))
  config.data.tokenizer = "bytes"
  with pytest.raises(ValueError, match=r"has another tokenizer\.json"):
    evaluate(config, str(finished))
  other = pathlib.Path(text_file).with_name("other.txt")
  other.write_text("No cat here.\n" * 60)
  config = experiment.load_trained(str(finished))
  config.data.files = str(other)
  with pytest.raises(ValueError, match="has 'N' as character 0"):
    evaluate(config, str(finished))
