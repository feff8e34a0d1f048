"""The recipes of LINA."""

import jax
import pytest

import experiment
import tasks
from configs import lina
from experiment import ranges
from input_pipeline import latents
from training import optimizers, paths

LATENTS = latents.DatasetInfo(
  num_eval_examples=50_000,
  num_train_examples=1_281_167,
  class_names=tuple(map(str, range(1000))),
  image_shape=(256, 256, 3),
  latent_shape=(16, 16, 16),
  scale=0.2325,
)


def test_the_recipe_of_the_paper():
  config = lina.get_config("imagenet_256")
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.schedule) == ("adamw", "constant")
  assert (optimizer.learning_rate, optimizer.warmup) == (8e-4, "10000 steps")
  assert (optimizer.b1, optimizer.b2) == (0.9, 0.95)
  assert (optimizer.weight_decay, optimizer.clip_norm) == (0.02, 0)
  assert (config.ema.decay, config.ema.every) == (0.99, 100)
  assert not config.ema.warmup
  assert (config.batch_size, config.train_for) == (2048, "1200000 steps")
  ratio = config.mask_ratio
  assert (ratio.mean, ratio.deviation, ratio.low, ratio.high) == (
    1,
    0.25,
    0.7,
    1,
  )
  assert (config.noise_draws, config.condition_dropout) == (4, 0.1)
  sampling = config.sampling
  assert (sampling.steps, sampling.flow_steps) == (64, 25)
  assert (sampling.guidance, sampling.min_guidance) == (2.4, 1)


@pytest.mark.parametrize("variant", lina.VARIANTS)
def test_what_decays(variant):
  config = lina.get_config(variant)
  ranges.check(config)
  if variant == "imagenet_256":
    # As a block is so are the others.
    for stack in ("connector", "encoder", "decoder", "flow"):
      config.model[f"{stack}_layers"] = 1
    info = LATENTS
  else:
    info = latents.DatasetInfo(1, tuple("0123456789"), (8, 8, 1))
  task = tasks.create(config, info)
  shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
  names = paths.flatten_with_names(shapes)
  groups = optimizers.group_by_rules(config.optimizer, names)["decay_exclude"]
  (excluded,) = config.optimizer.decay_exclude
  # All that normalises, and nothing else: no bias, gate or embedding.
  assert set(groups[excluded]) == {name for name in names if "norm" in name}
  assert {"mask_token", "label_embed/embedding"} <= set(groups[""])


def test_a_run_of_imagenet_can_be_made():
  config = lina.get_config("imagenet_256")
  config.model.name = "lina_d48w1024"
  for stack in ("connector", "encoder", "decoder", "flow"):
    config.model[f"{stack}_layers"] = 1
  built = experiment.create(config, info=LATENTS)
  assert built.batch["moments"].shape == (2048, 16, 16, 32)
  assert built.clock.total_steps == 1_200_000
  assert any(rule.startswith("frozen: what does not") for rule in built.rules)


def test_unknown_variants():
  with pytest.raises(ValueError, match="no variant 'imagenet'"):
    lina.get_config("imagenet")
