"""A config made into objects, and weights for them: where all packages meet."""

from experiment.build import (
  Evaluation,
  Experiment,
  compile_steps,
  create,
  create_evaluation,
)

__all__ = [
  "Evaluation",
  "Experiment",
  "compile_steps",
  "create",
  "create_evaluation",
]
