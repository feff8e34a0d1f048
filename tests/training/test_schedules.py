import ml_collections
import numpy as np
import pytest

from training import durations, optimizers, schedules

CLOCK = durations.Clock(100, 10, total_steps=100)


def create(**fields):
  config = optimizers.default_config()
  config.update(learning_rate=0.2, warmup="10 steps", **fields)
  return schedules.create_schedule(config, CLOCK)


def test_warmup_is_linear_from_zero_to_the_peak():
  for name in schedules.SCHEDULES:
    schedule = create(schedule=name, boundaries=("50 steps",))
    np.testing.assert_allclose(
      [schedule(s) for s in (0, 5, 10)], [0, 0.1, 0.2], rtol=1e-6
    )


def test_cosine_ends_at_the_final_rate():
  schedule = create(schedule="cosine", final_learning_rate=0.02)
  # Half-way through the 90 steps after warm-up: the mean of both ends.
  np.testing.assert_allclose(schedule(55), 0.11, rtol=1e-6)
  np.testing.assert_allclose(schedule(100), 0.02, rtol=1e-6)


def test_linear_and_constant():
  schedule = create(schedule="linear", final_learning_rate=0.02)
  np.testing.assert_allclose(schedule(55), 0.11, rtol=1e-6)
  assert create(schedule="constant")(99) == pytest.approx(0.2)


def test_stepwise_counts_boundaries_from_the_start_of_the_run():
  schedule = create(schedule="stepwise", boundaries=("3 epochs", "60 percent"))
  np.testing.assert_allclose(
    [schedule(s) for s in (29, 31, 59, 61)], [0.2, 0.02, 0.02, 0.002], rtol=1e-5
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(schedule="sawtooth"), "choose from cosine"),
    (dict(warmup="101 steps"), "longer than the run of 100 steps"),
    (dict(schedule="stepwise", boundaries=("5 steps",)), "before the warm-up"),
  ],
)
def test_errors_name_the_field(fields, message):
  config = ml_collections.ConfigDict(optimizers.default_config())
  config.update(warmup="10 steps")
  config.update(fields)
  with pytest.raises(ValueError, match=message):
    schedules.create_schedule(config, CLOCK)
