"""Rows of text that studies of language models look into models with."""

from typing import Any

import numpy as np

from input_pipeline import text
from tools import study


def rows(run: study.Run) -> dict[str, np.ndarray]:
  """Returns all rows of the evaluation.

  Args:
    run: of a task of text.

  Returns:
    Arrays [rows, length], as `input_pipeline.text.eval_batches` has them.
  """
  names = run.task.batch_spec(1, train=False)
  batches = list(text.eval_batches(run.config.data, batch_size=32))
  return {name: np.concatenate([b[name] for b in batches]) for name in names}


def some(batch: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
  """Returns `count` rows, evenly spaced, or all if there are fewer.

  Args:
    batch: arrays [rows, ...].
    count: how many.
  """
  step = max(1, len(batch["tokens"]) // count)
  return {name: array[::step][:count] for name, array in batch.items()}


def places(batch: dict[str, Any]) -> dict[str, Any]:
  """The positions and segments of rows, for a model."""
  return {name: batch[name] for name in ("positions", "segments")}
