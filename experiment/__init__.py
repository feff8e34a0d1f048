"""A config made into objects, and weights for them: where all packages meet."""

from experiment.build import Experiment, compile_steps, create

__all__ = ["Experiment", "compile_steps", "create"]
