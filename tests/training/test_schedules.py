import ml_collections
import numpy as np
import pytest

from tests import parity_helper
from training import durations, optimizers, schedules

CLOCK = durations.Clock(100, 10, total_steps=100)


def create(**fields):
  config = optimizers.default_config()
  config.update(**{"learning_rate": 0.2, "warmup": "10 steps", **fields})
  return schedules.create_schedule(config, CLOCK)


def test_warmup_is_linear_from_zero_to_the_peak():
  for name in set(schedules.SCHEDULES) - {"onecycle"}:
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


@pytest.mark.parity
def test_each_of_several_boundaries_on_one_step_counts():
  torch = parity_helper.import_torch()
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.2)
  peer = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 3])
  expected = []
  for _ in range(4):
    expected.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    peer.step()
  config = optimizers.default_config()
  config.update(schedule="stepwise", learning_rate=0.2)
  config.boundaries = ("50 percent", "55 percent", "75 percent")
  clock = durations.Clock(100, 10, total_steps=4)
  schedule = schedules.create_schedule(config, clock)
  ours = [schedule(step) for step in range(4)]
  np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("warmup", ["0 steps", "5 percent", "10 steps"])
def test_no_steps(name, warmup):
  config = optimizers.default_config()
  config.update(schedule=name, warmup=warmup)
  clock = durations.Clock(100, 10, total_steps=0)
  assert np.isfinite(schedules.create_schedule(config, clock)(0))


@pytest.mark.parity
def test_one_cycle_is_pytorchs():
  torch = parity_helper.import_torch()
  optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
  peer = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=100)
  expected = []
  for _ in range(100):
    expected.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    peer.step()
  schedule = create(
    schedule="onecycle", warmup="30 percent", final_learning_rate=0.2 / 25e4
  )
  ours = [schedule(step) for step in range(100)]
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_a_few_steps_is_finite(steps):
  config = optimizers.default_config()
  config.update(schedule="onecycle", warmup="30 percent", learning_rate=0.2)
  clock = durations.Clock(100, 10, total_steps=steps)
  schedule = schedules.create_schedule(config, clock)
  rates = np.array([schedule(step) for step in range(steps)])
  assert rates[0] > 0
  assert (rates >= 0).all()
  assert (rates <= 0.2 + 1e-6).all()


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
