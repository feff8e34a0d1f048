"""What the tests of whole runs share: small configs, and how runs compare."""

import json
import pathlib
from pydoc_data import topics
from unittest import mock

import jax
import numpy as np
import pytest

import experiment
from configs import digits, language, lina
from training import summary

LANGUAGE_TEXT = "\n\n".join(topics.topics.values())[:40_000]
# Of every task: what the loop promises does not depend on what is trained.
CONFIGS = {
  "digits": lambda: digits.get_config("tiny"),
  "language": lambda: language.get_config("test"),
  "lina": lambda: lina.get_config("test"),
}
of_every_task = pytest.mark.parametrize(
  "job", CONFIGS, indirect=True, scope="module"
)


class Repeated:
  """What runs of the same config need not do again.

  They differ in what stops them, in what is in their folder and in their last
  lines; what is built and compiled depends on the config alone. A process that
  goes on where another was is in `test_reliability.py`.
  """

  def __init__(self):
    self._create, self._compile = experiment.create, experiment.compile_steps
    self._built, self._compiled = {}, {}
    self._finish = summary.finish

  def share(self, monkeypatch):
    """Builds and compiles once, and leaves out pictures and samples."""
    monkeypatch.setattr(experiment, "create", self._create_once)
    monkeypatch.setattr(experiment, "compile_steps", self._compile_once)
    monkeypatch.setattr(summary, "finish", lambda *args: None)

  def finish_as_users_do(self, monkeypatch):
    monkeypatch.setattr(summary, "finish", self._finish)

  def _create_once(self, config):
    key = config.to_json(sort_keys=True)
    if key not in self._built:
      # A test may go on to change its own.
      self._built[key] = self._create(config.copy_and_resolve_references())
    return self._built[key]

  def _compile_once(self, setup, evaluated):
    # The setups are kept, so that no two have the same id.
    if id(setup) not in self._compiled:
      with mock.patch.object(evaluated, "use", wraps=evaluated.use) as use:
        train_step = self._compile(setup, evaluated)
      self._compiled[id(setup)] = train_step, *use.call_args.args
    train_step, evaluate = self._compiled[id(setup)]
    evaluated.use(evaluate)
    return train_step


def make_config(job, data_dir):
  config = CONFIGS[job]()
  config.data.data_dir = data_dir
  if job == "language":
    # Little text, so that evaluations are short.
    path = pathlib.Path(data_dir) / "text.txt"
    path.write_text(LANGUAGE_TEXT)
    config.data.files = str(path)
  return config


def read_rows(workdir):
  with open(f"{workdir}/metrics.jsonl") as file:
    return [json.loads(line) for line in file]


def assert_same_state(a, b):
  """Equal to the last bit, random key and statistics included."""
  a, b = (
    jax.tree.map(
      lambda x: np.asarray(
        jax.random.key_data(x)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        else x
      ),
      state,
    )
    for state in (a, b)
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)


def strip_rates(rows):
  return [
    {k: v for k, v in row.items() if not k.endswith(("_per_second", "goodput"))}
    for row in rows
  ]
