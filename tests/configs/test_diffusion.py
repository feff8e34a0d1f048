"""The recipes of diffusion."""

import jax
import pytest

import experiment
import tasks
from configs import diffusion
from experiment import ranges
from tools import absent_data
from training import optimizers, paths


def test_the_recipe_of_dit():
  config = diffusion.get_config("imagenet_256")
  assert config.model.to_dict() == {"name": "dit_xl_2"}
  path = config.path
  assert (path.name, path.schedule, path.steps) == ("ddpm", "linear", 1000)
  assert (path.prediction, path.times) == ("noise", "uniform")
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.schedule) == ("adamw", "constant")
  assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 0)
  assert (optimizer.b1, optimizer.b2, optimizer.clip_norm) == (0.9, 0.999, 0)
  assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
  assert (config.batch_size, config.train_for) == (256, "7000000 steps")
  assert config.condition_dropout == 0.1
  assert (config.sampling.steps, config.sampling.guidance) == (250, 1.5)


def test_a_run_of_imagenet_can_be_made():
  config = diffusion.get_config("imagenet_256")
  config.model.depth = 1
  built = experiment.create(config, info=absent_data.info(config))
  assert built.batch["moments"].shape == (256, 32, 32, 8)
  assert built.task.model.sample_shape == (32, 32)
  assert built.task.model.num_classes == 1000
  assert built.task.model.learned_variance
  assert built.clock.total_steps == 7_000_000


@pytest.mark.parametrize("variant", diffusion.VARIANTS)
def test_what_decays(variant):
  config = diffusion.get_config(variant)
  config.model.depth = 1
  ranges.check(config)
  task = tasks.create(config, absent_data.info(config))
  shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
  names = paths.flatten_with_names(shapes)
  optimizers.check_unused(config.optimizer)
  if config.optimizer.weight_decay:
    groups = optimizers.group_by_rules(config.optimizer, names)
    decayed = groups["decay_exclude"][""]
    assert {name for name in names if name.endswith("/kernel")} <= set(decayed)


def test_the_embedded_ones_have_what_the_methods_act_on():
  for variant, tokens in (("digits", (4, 4)), ("moving_digits", (8, 4, 4))):
    config = diffusion.get_config(variant)
    model = tasks.create(config, absent_data.info(config)).model
    assert model.token_grid(model.sample_shape) == tokens
    assert model.conditioning == "cross"
    assert model.label_tokens == len(tokens) - 1


def test_unknown_variants():
  with pytest.raises(ValueError, match="no variant 'imagenet'"):
    diffusion.get_config("imagenet")
