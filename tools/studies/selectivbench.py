"""SelectivBench (arXiv 2601.12598): what lets a recurrence keep to a sequence.

Claimed: a gate that forgets fast is what a linear recurrence needs to pass over
what is not asked for; mixing channels within the state, the delta rule, is not
needed for that but for generalisation; softmax stays best.

Measured: the share of symbols whose hidden state is told, with gaps of 1 to 10
blanks as in training, and with gaps five times as long. Beside it what a
replay of the grammar reaches, which no model can surpass but by luck. The
recurrent rows differ in one thing each, and all rows in the mixer alone:
their feed-forward layers, pre-norm residual stream and parameters are alike,
other than in the paper, whose models are larger and see 180 times the symbols.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

import experiment
from configs import sequences as configs
from input_pipeline import sequences
from input_pipeline.sequences import grammar_oracle, sources
from tools import study

NAME = "selectivbench"
REPLAY = "replay of the grammar"
ROWS = ("softmax", "linear", "gated linear", "DeltaNet", "gated DeltaNet")
# How much longer gaps are than in training, the steps that an element takes
# then at most in nearly all rows, and sequences that are evaluated so.
LONGER, STEPS, FAR_EXAMPLES = 5, 35, 30


def rows(variant: str) -> Sequence[study.Row]:
  """Mixers in one model, and the bound.

  To be tried, all that recur are the one of which the others are parts: most of
  a step's time is its compilation.
  """
  made = [study.Row(name, _config(name, variant)) for name in ROWS]
  return [*made, study.Row(REPLAY, None)]


def _config(mixer: str, variant: str) -> ml_collections.ConfigDict:
  config = configs.get_config("grammar")
  config.data.eval_examples = 100
  config.batch_size = 8
  config.train_for = config.evaluate_every = config.checkpoint.every = (
    "100 steps"
  )
  if mixer == "softmax":
    config.model.mixers = ("full",)
    config.model.mixer_options = {}
    config.model.position_encoding = "rotary"
    config.model.rotary = {"base": 1000.0}
  else:
    mixer = "gated DeltaNet" if variant == "test" else mixer
    config.model.mixer_options = {"linear": configs.RECURRENT_MIXERS[mixer]}
  if variant == "test":
    config = study.shrunk(config, depth=1)
    config.data.options.update(elements=4, length=16)
  return config


def _longer(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with gaps that are longer in evaluation."""
  config = config.copy_and_resolve_references()
  options = config.data.options
  config.data.eval_options.update(
    gaps=tuple(LONGER * gap for gap in options.gaps),
    length=STEPS * options.elements,
  )
  config.data.eval_examples = min(config.data.eval_examples, FAR_EXAMPLES)
  config.eval_batch_size = min(config.eval_batch_size, FAR_EXAMPLES)
  return config


def measure(run: study.Run) -> dict[str, float]:
  """Accuracy of elements with longer gaps; both of the replay."""
  if run.config is None:
    config = _config("softmax", "full")
    near, far = (_replayed(x.data) for x in (config, _longer(config)))
    return {"element_accuracy": near, "longer": far}
  setup = experiment.create_evaluation(_longer(run.config))
  evaluated = setup.task.evaluations(setup.mesh)[0].run(run.variables)
  return {"longer": evaluated["element_accuracy"]}


def _replayed(data: ml_collections.ConfigDict) -> float:
  """What the replay reaches on the examples that are evaluated."""
  options = {**data.options.to_dict(), **data.eval_options.to_dict()}
  batches = sequences.eval_batches(data, batch_size=1)
  return grammar_oracle.accuracy(
    sources.create(data.source, options),
    [{name: x[0] for name, x in batch.items()} for batch in batches],
  )


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Accuracy of elements by row, at both lengths of gaps."""
  cells = []
  for name in (*ROWS, REPLAY):
    own = [line for line in lines if line["row"] == name]
    size = own[0].get("parameters") if own else None
    cells.append(
      [name, "" if size is None else f"{size:,}"]
      + [
        study.spread([line[which] for line in own], 3)
        for which in ("element_accuracy", "longer")
      ]
    )
  header = ("mixer", "parameters", "gaps of 1 to 10", "gaps of 5 to 50")
  return {NAME: study.markdown(header, cells)}
