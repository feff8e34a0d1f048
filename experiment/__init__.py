"""A config made into objects, and weights for them: where all packages meet."""

from experiment.build import (
  Evaluation,
  Experiment,
  compile_steps,
  create,
  create_evaluation,
)
from experiment.overrides import optional_fields

__all__ = [
  "Evaluation",
  "Experiment",
  "compile_steps",
  "create",
  "create_evaluation",
  "optional_fields",
]
