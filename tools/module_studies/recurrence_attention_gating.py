"""Recurrence, attention and gates, added to models that forecast."""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

import experiment
from configs import forecasting
from tools import study
from training import metrics

TITLE = "Deconstructing Recurrence, Attention, and Gating (2410.02654)"
GROUP = "forecasting"
TEXT = """\
Lorenz's ring of 8 numbers with F = 8, seen every 0.05 of its time: models of
30,000 parameters, within 5 %, trained alike on 32 trajectories, forecast 100
others after 64 true states. "valid_time" is the mean time in Lyapunov times
until the error exceeds half a deviation of the data, "strict" until it exceeds
a twentieth. "Nothing changes" forecasts what was seen last. Recurrent networks
and the recurrent transformer go through whole trajectories and carry their
state; "GRU, windows" is the control that begins anew in each window of 16, as
the transformer does. Gates are coupled ones, of the cell and of attention; the
attention of the row without gates is added to the stream. The paper says that
gates and attention improve recurrent networks, that recurrence harms
transformers, and that recurrent highway networks with both are best for systems
of many dimensions, which this is not. Formulas of gates and attention are ours,
as the paper's could not be read.
"""
COLUMNS = (
  ("parameters", ",.0f"),
  ("valid_time", ".2f"),
  ("strict", ".2f"),
  ("one_step", ".4f"),
  ("spectrum", ".2f"),
  ("diverged", ".1%"),
)
Row = tuple[str, dict[str, Any]]
# A row of the grid, and what differs of its config.
_UNTRAINED = "nothing changes"
_ROWS: dict[str, dict[str, Any]] = {
  _UNTRAINED: {"row": "gru"},
  "LSTM": {"row": "lstm"},
  "GRU, windows": {"row": "gru", "data.order": "shuffled"},
  "GRU": {"row": "gru"},
  "GRU, gates": {"row": "gru_coupled"},
  "GRU, attention": {"row": "gru_attention"},
  "GRU, attention and gates": {"row": "gru_attention_coupled"},
  "RHN": {"row": "rhn"},
  "RHN, attention and gates": {"row": "rhn_attention_coupled"},
  "transformer": {"row": "transformer_additive"},
  "transformer, recurrence": {"row": "recurrent_transformer_additive"},
}
_STEPS = 3000
# The least that goes through all of the study's code.
_TEST = {
  "data.trajectories": 4,
  "data.states": 40,
  "data.eval_examples": 4,
  "data.warm_up": 8,
  "data.horizon": 8,
  "batch_size": 4,
  "eval_batch_size": 4,
  "model.width": 4,
}


def rows(variant: str) -> list[Row]:
  """The names of rows, and what makes their configs; of a test, two."""
  if variant == "full":
    return list(_ROWS.items())
  return [(name, _ROWS[name]) for name in (_UNTRAINED, "GRU")]


def measure(
  folder: epath.Path,
  row: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains a model and lets it forecast.

  Args:
    folder: not used, as rows share nothing.
    row: its name; one is not trained.
    options: of `rows`.
    seed: of the training; trajectories are always the same.
    variant: "full" or "test".

  Returns:
    What COLUMNS names; one_step is the root of the mean squared error.
  """
  del folder
  config = make_config(options, seed, variant)
  if row == _UNTRAINED:
    parameters, found = 0, _at_the_beginning(config)
  else:
    with tempfile.TemporaryDirectory() as workdir:
      _, line = study.train(config, workdir, show=False)
      *_, last = filter(metrics.is_evaluation, metrics.read_metrics(workdir))
    parameters = line["parameters"]
    found = {name.removeprefix("eval/"): x for name, x in last.items()}
  return {
    "parameters": parameters,
    "valid_time": found["valid_time"],
    "strict": found["valid_time_strict"],
    "one_step": found["loss"] ** 0.5,
    "spectrum": found["spectrum_error"],
    "diverged": found["diverged"],
  }


def _at_the_beginning(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What a model says that was not trained: all stays as it is."""
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    evaluation = setup.task.evaluate_split(setup.mesh)
    found = evaluation.run(setup.init_variables())
  return setup.task.report(found)


def make_config(
  options: Mapping[str, Any], seed: int, variant: str
) -> ml_collections.ConfigDict:
  """The config of a run."""
  options = dict(options)
  config = forecasting.get_config(f"lorenz96_small-{options.pop('row')}")
  if variant == "test":
    options |= _TEST
  config.update_from_flattened_dict(options)
  config.seed = seed
  steps = _STEPS if variant == "full" else 2
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = config.train_for
  return config
