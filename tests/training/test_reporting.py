import numpy as np
import pytest

from training import phases, reporting

FINE = {"loss": 1.0, "accuracy": 0.5, "grad_norm": 1.0, "param_norm": 1.0}


class Writer:
  def __init__(self):
    self.steps = []

  def write(self, step, row):
    assert row["train/goodput"] == 0
    self.steps.append(step)


class Progress:
  unit = "image"

  def update(self, step, row):
    return 3.0


def make_reporter(writer):
  return reporting.StepReporter(writer, Progress(), phases.Phases())


def test_reports_one_step_behind():
  writer = Writer()
  reporter = make_reporter(writer)
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
  reporter = make_reporter(writer)
  reporter.push(7, FINE | {name: value})
  with pytest.raises(
    reporting.NonFiniteError, match=rf"train/{name} is {value} at step 7"
  ):
    reporter.flush()
  assert writer.steps == [7]
