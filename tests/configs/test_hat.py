"""HAT's configs make a task, and say what its weights do not."""

import pytest

import tasks
from configs import hat as configs
from experiment import ranges
from models.hat import HAT
from tools import absent_data
from training import optimizers, schedules
from training.durations import Clock


def _task(config):
  return tasks.create(config, absent_data.info(config))


@pytest.mark.parametrize("variant", configs.VARIANTS)
def test_a_variant(variant):
  config = configs.get_config(variant)
  ranges.check(config)
  optimizers.check_unused(config.optimizer)
  clock = Clock(1000, config.batch_size)
  total = clock.steps(config.train_for, "train_for")
  clock = Clock(1000, config.batch_size, total)
  schedule = schedules.create_schedule(config.optimizer, clock)
  assert float(schedule(total // 2)) > 0
  model = _task(config).model
  assert isinstance(model, HAT)
  assert (config.model.conv_scale, config.model.image_range) == (0.01, 1.0)
  if variant[-2:] in ("x2", "x3", "x4"):
    assert model.scale == int(variant[-1])


def test_its_recipes():
  config = configs.get_config("df2k")
  assert (config.optimizer.learning_rate, config.batch_size) == (2e-4, 32)
  assert config.data.patch_size == 64
  fine = configs.get_config("finetune")
  assert fine.optimizer.learning_rate == 1e-5
  assert fine.optimizer.boundaries[0] == "125000 steps"
  large, small = configs.get_config("l_x4"), configs.get_config("s_x2")
  assert len(_task(large).model.depths) == 12
  assert _task(small).model.width == 144


def test_patches_are_whole_windows():
  config = configs.get_config("test")
  config.data.patch_size = 6
  with pytest.raises(ValueError, match=r"data.patch_size=6 must be a multiple"):
    _task(config)
