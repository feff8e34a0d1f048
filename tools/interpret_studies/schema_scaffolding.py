"""Schema scaffolding: records filled with and without a skeleton."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

import experiment
import tasks
from configs import masked_diffusion
from evaluation import structured
from tasks import record_filling
from tools import adapted_runs, study_command

TITLE = "Schema scaffolding (2507.04504)"
TEXT = """\
A masked-diffusion model of bytes is trained on sentences, each followed by what
it says as flat JSON (`configs/masked_diffusion.py:records`). Half of the
examples have a flag and values that are filled up with nulls, since so small a
model follows no instruction: it has *seen* the null convention, which is weaker
than what the paper claims of large ones. The rows: all tokens masked, the
skeleton given and no flag (S^2), the skeleton and the flag (S^3), and as a
control the flag without a skeleton; with S^3 also the order of the paper's
text, in which the least sure are masked again. Of records that training has not
seen: how many are JSON (SV), have all fields filled that the sentence says
(FC), adhere to the schema (SC); precision, recall and F1 of values by exact
match, and the share of values that the sentence does not have (HR). Steps
executed are fewer than asked for where slots are few. With a skeleton SV and SC
are 1 by construction, as quotes and newlines are forbidden in slots; F1 and HR
are what is learned from the table. The paper's claim fails if F1 of S^3 does
not beat that of S^2, or if the baseline's SV comes to 1 at 16 steps. So that
copying is learned within minutes, the data are small: three fields with names
of a letter, of which two or all are said, and values of one to three of four
letters. A guess of one letter is therefore often in the sentence, so that HR is
lower than how often values are wrong. What copies all has nothing to gain, so
the last rows are of models that have just begun to copy, after 400 steps of
training in the place of 1,500.
"""
COLUMNS = (
  ("steps", ".0f"),
  ("SV", ".2f"),
  ("FC", ".2f"),
  ("SC", ".2f"),
  ("precision", ".3f"),
  ("recall", ".3f"),
  ("F1", ".3f"),
  ("HR", ".3f"),
)
_ROWS = {
  "all masked": {"scaffold": False, "nulls": False},
  "S^2": {"scaffold": True, "nulls": False},
  "S^3": {"scaffold": True, "nulls": True},
}
_CONTROLS = {
  "all masked, nulls": {"scaffold": False, "nulls": True},
  "S^3, masked again": {"scaffold": True, "nulls": True, "order": "remask"},
}
# What those that have just begun to copy are trained for.
_HALF_TRAINED = "400 steps"
_STEPS = {"full": (4, 8, 16, 32), "test": (2,)}
_COUNTS = {"full": 100, "test": 3}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows and what they fill records with."""
  steps = _STEPS[variant]
  chosen = [(n, o, count) for n, o in _ROWS.items() for count in steps]
  # Controls of one number of steps.
  chosen += [(n, o, steps[-2:][0]) for n, o in _CONTROLS.items()]
  named = [
    (f"{name}, {count} steps", {**options, "steps": count})
    for name, options, count in chosen
  ]
  if variant == "test":
    return named
  return named + [
    (f"half trained: {name}", {**options, "train_for": _HALF_TRAINED})
    for name, options in named
    if options["steps"] == steps[-2]
  ]


def make_config(
  seed: int, variant: str, train_for: str | None = None
) -> ml_collections.ConfigDict:
  """The run of the model that rows fill records with."""
  config = masked_diffusion.get_config(
    "test" if variant == "test" else "records"
  )
  config.seed = seed
  if train_for:
    config.train_for = config.evaluate_every = train_for
    config.checkpoint.every = train_for
  return config


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Fills records and scores them.

  Args:
    folder: of what rows share, the trained models.
    name: of the row.
    options: of `record_filling.fill`, and train_for if the model's training is
      another.
    seed: of the training.
    variant: "full" or "test".

  Returns:
    What COLUMNS names.
  """
  del name
  options = dict(options)
  task, variables, mesh = _trained(
    folder, seed, variant, options.pop("train_for", None)
  )
  source = record_filling.find_source(task.config)
  records = record_filling.unseen(source, _COUNTS[variant])
  sentences = [record.sentence for record in records]
  with jax.set_mesh(mesh):
    texts, executed = record_filling.fill(
      task.model, variables, source, sentences, **options
    )
  scores = structured.structured_scores(
    texts,
    [record.values for record in records],
    sentences,
    source.fields,
  )
  return {
    "steps": float(executed),
    "SV": scores["structure_validity"],
    "FC": scores["field_completeness"],
    "SC": scores["schema_compliance"],
    **{name: scores[name] for name in ("precision", "recall")},
    "F1": scores["f1"],
    "HR": scores["hallucination_rate"],
  }


# A row is one decoding; the model is the same for all of a seed.
@functools.lru_cache(maxsize=2 * len(study_command.SEEDS))
def _trained(
  folder: epath.Path, seed: int, variant: str, train_for: str | None
) -> tuple[tasks.Task, dict[str, Any], jax.sharding.Mesh]:
  config = make_config(seed, variant, train_for)
  _, variables = adapted_runs.foundation(config, folder, "schema_scaffolding")
  setup = experiment.create_evaluation(config)
  return setup.task, variables, setup.mesh
