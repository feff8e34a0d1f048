"""Rows of text that studies of language models look into models with."""

from typing import Any

import numpy as np

from input_pipeline import text
from tools import study


def rows(run: study.Run, count: int) -> dict[str, np.ndarray]:
  """Returns rows of the evaluation, from its beginning to its end.

  Args:
    run: of a task of text.
    count: how many; all if there are fewer.

  Returns:
    Arrays [count, length], as `input_pipeline.text.eval_batches` has them.
  """
  spec = run.task.batch_spec(1, train=False)
  batches = list(text.eval_batches(run.config.data, batch_size=1))
  step = max(1, len(batches) // count)
  chosen = batches[::step][:count]
  return {name: np.concatenate([b[name] for b in chosen]) for name in spec}


def places(batch: dict[str, Any]) -> dict[str, Any]:
  """The positions and segments of rows, for a model."""
  return {name: batch[name] for name in ("positions", "segments")}
