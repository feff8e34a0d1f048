"""A config made into objects, and weights for them: where all packages meet."""

from experiment.build import (
  Evaluation,
  Experiment,
  create,
  create_evaluation,
)
from experiment.compiling import compile_steps
from experiment.overrides import optional_fields
from experiment.saved import check_workdir, load_config, load_trained

__all__ = [
  "Evaluation",
  "Experiment",
  "check_workdir",
  "compile_steps",
  "create",
  "create_evaluation",
  "load_config",
  "load_trained",
  "optional_fields",
]
