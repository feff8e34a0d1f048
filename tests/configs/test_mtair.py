"""MTAIR's configs: what its code says, and that every variant can be made."""

import jax
import pytest

import tasks
from configs import mtair
from experiment import ranges
from input_pipeline.restoration import degradations
from models import registry
from training import optimizers, schedules
from training.durations import Clock


def create(config):
  return tasks.create(config, tasks.find(config.task).sampling_info(config))


def test_the_recipe_of_the_code():
  config = mtair.get_config("all_in_one")
  assert config.model.name == "mtair"
  assert mtair.get_config("restormer").model.name == "restormer"
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.schedule) == ("adamw", "cosine")
  assert (optimizer.learning_rate, optimizer.weight_decay) == (2e-4, 0.01)
  assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
  # PyTorch's decays all parameters.
  assert optimizer.decay_exclude == ()
  assert (config.train_for, optimizer.warmup) == ("200 epochs", "15 epochs")
  assert (config.batch_size, config.data.patch_size) == (2 * 4, 128)
  assert (config.loss.name, config.evaluation.rounded) == ("l1", False)
  # An epoch is as long as the code's, of its noise, rain and haze.
  patches = 5_144 * 3 * 3 + 200 * 200 + 72_135
  assert 5_144 * config.data.repeat == pytest.approx(patches, rel=0.01)
  kinds = [degradations.create(d, 1).steps[0] for d in config.data.degradations]
  sigmas = [kind.sigma for kind in kinds if hasattr(kind, "sigma")]
  assert (sigmas, len(kinds)) == ([15, 25, 50], 5)
  # Prompts have the sizes of features of a patch in training.
  sides = registry.create("mtair").prompt_sides
  assert sides == tuple(config.data.patch_size // 2**i for i in range(4))


@pytest.mark.parametrize("variant", mtair.VARIANTS)
def test_variants(variant):
  config = mtair.get_config(variant)
  ranges.check(config)
  task = create(config)
  assert (task.model.scale, config.data.scale) == (1, 1)
  optimizers.check_unused(config.optimizer)
  clock = Clock(1000, config.batch_size)
  total = clock.steps(config.train_for, "train_for")
  clock = Clock(1000, config.batch_size, total)
  schedule = schedules.create_schedule(config.optimizer, clock)
  assert float(schedule(total // 2)) > 0
  optimizers.create_optimizer(config.optimizer, schedule)


def test_the_small_network_has_all_parts():
  task = create(mtair.get_config())
  params = jax.eval_shape(task.init, jax.random.key(0))["params"]
  assert "scan" in params["encoder_0"]["block_0"]
  assert {"prompt_0", "prompt_1"} <= set(params)
  sides = [params[f"prompt_{i}"]["prompt"]["prompts"].shape[1] for i in (0, 1)]
  assert sides == [task.config.data.patch_size // 2**i for i in (0, 1)]


def test_unknown_variants():
  with pytest.raises(ValueError, match=r"no variant 'rain'; it has photograph"):
    mtair.get_config("rain")
