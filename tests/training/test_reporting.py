import numpy as np
import pytest

from training import reporting

FINE = {"loss": 1.0, "accuracy": 0.5, "grad_norm": 1.0, "param_norm": 1.0}


class Writer:
  def __init__(self):
    self.steps = []

  def write(self, step, row):
    self.steps.append(step)


class Progress:
  unit = "image"

  def update(self, step, row):
    return 3.0


def test_reports_one_step_behind():
  writer = Writer()
  reporter = reporting.StepReporter(writer, Progress())
  seen = []
  for step in (1, 2, 3):
    reporter.push(step, FINE)
    seen.append(list(writer.steps))
  assert seen == [[], [1], [1, 2]]
  reporter.flush()
  reporter.flush()
  assert writer.steps == [1, 2, 3]


@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_written_and_raised(name, value):
  writer = Writer()
  reporter = reporting.StepReporter(writer, Progress())
  reporter.push(7, FINE | {name: value})
  with pytest.raises(
    reporting.NonFiniteError, match=rf"train/{name} is {value} at step 7"
  ):
    reporter.flush()
  assert writer.steps == [7]
