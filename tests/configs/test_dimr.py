"""The recipes of DiMR."""

import jax
import numpy as np
import pytest

import experiment
import tasks
from configs import diffusion, dimr
from experiment import ranges
from input_pipeline import visual
from tools import absent_data, work
from training import optimizers, paths


def test_the_recipe_of_the_paper():
  config = dimr.get_config("imagenet_256")
  assert config.model.to_dict() == {"name": "dimr_xl_2r", "remat": True}
  path = config.path
  assert (path.name, path.schedule, path.steps) == (
    "ddpm",
    "scaled_linear",
    1000,
  )
  assert (path.prediction, path.times) == ("noise", "uniform")
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.schedule) == ("adamw", "constant")
  assert (optimizer.learning_rate, optimizer.warmup) == (2e-4, "5000 steps")
  assert (optimizer.b1, optimizer.b2) == (0.99, 0.99)
  assert (optimizer.weight_decay, optimizer.clip_norm) == (0.03, 0)
  assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
  assert (config.batch_size, config.train_for) == (1024, "1000000 steps")
  assert (config.seed, config.condition_dropout) == (1234, 0.1)
  sampling = config.sampling
  assert (sampling.steps, sampling.guidance) == (250, 1.4)
  assert sampling.solver == "dpm_solver"


def test_a_run_of_imagenet_can_be_made():
  config = dimr.get_config("imagenet_256")
  config.model.depths = (1, 1)
  info = absent_data.info(config, num_classes=1000)
  built = experiment.create(config, info=info)
  assert built.batch["moments"].shape == (1024, 32, 32, 8)
  assert built.task.model.num_classes == 1000
  assert built.clock.total_steps == 1_000_000


@pytest.mark.parametrize("variant", dimr.VARIANTS)
def test_all_decays_but_how_vectors_go_with_time(variant):
  config = dimr.get_config(variant)
  config.model.depths = (1, 1)
  ranges.check(config)
  optimizers.check_unused(config.optimizer)
  classes = 1000 if variant == "imagenet_256" else 0
  task = tasks.create(config, absent_data.info(config, num_classes=classes))
  names = paths.flatten_with_names(
    jax.eval_shape(task.init, jax.random.key(0))["params"]
  )
  groups = optimizers.group_by_rules(config.optimizer, names)["decay_exclude"]
  (excluded,) = config.optimizer.decay_exclude
  assert set(groups[excluded]) == {
    name for name in names if name.split("/")[-1] in ("slope", "offset")
  }
  assert any(name.endswith("scale/noisy") for name in groups[""])
  assert any(name.endswith("/bias") for name in groups[""])


def test_digits_take_what_the_transformer_takes():
  counts = []
  for config in (diffusion.get_config("digits"), dimr.get_config("digits")):
    task = tasks.create(config, visual.dataset_info(config.data))
    model = task.model.clone(implementation="xla")
    variables = jax.eval_shape(task.init, jax.random.key(0))
    counted = work.count_work(
      lambda v, i, m=model: m.apply(v, **i), variables, model.example_inputs()
    )
    counts.append(counted.multiply_adds)
  assert counts[1] == pytest.approx(counts[0], rel=0.05)


def test_the_loss_is_of_all_stages():
  config = dimr.get_config("test")
  info = visual.dataset_info(config.data)
  task = tasks.create(config, info)
  variables = jax.jit(task.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "x": rng.uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32),
    "noise": rng.standard_normal((3, 8, 8, 1), np.float32),
    "time": np.float32([0, 500, 999]),
    "label": np.array([1, 10, 3]),
  }

  @jax.jit
  def run(variables, batch):
    noisy = task.path.add_noise(batch["x"], batch["noise"], batch["time"])
    outputs = task.predict(variables, batch, noisy)
    return task.losses(variables, batch), outputs

  losses, (coarse, fine) = run(variables, batch)
  noise = batch["noise"]
  means = noise.reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
  expected = ((fine - noise) ** 2).mean((1, 2, 3))
  expected += ((coarse - 2 * means) ** 2).mean((1, 2, 3)) / 4
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_unknown_variants():
  with pytest.raises(ValueError, match="no variant 'imagenet'"):
    dimr.get_config("imagenet")
