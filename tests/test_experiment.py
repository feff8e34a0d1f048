"""What an experiment says of itself before it runs."""

import jax
import pytest
from jax.experimental import topologies

import experiment
from configs import digits, language, resnet_rs
from experiment import compiling
from input_pipeline import images, text
from tools import compile_only  # noqa: F401, it sets what libtpu reads.


def create(**fields):
  config = resnet_rs.get_config("digits")
  config.model.update(depths=(1,), widths=(4,), stem_widths=(4, 4, 4))
  config.data.name, config.data.image_size = "fake", 16
  config.data.channels = config.data.fake.image_shape[-1]
  config.batch_size = config.eval_batch_size = 16
  config.data.mean = config.data.std = (0.5,) * 3
  config.update_from_flattened_dict(fields)
  return experiment.create(config)


# Lowers two training steps.
@pytest.mark.slow
def test_flops_are_those_of_the_whole_batch():
  counts = []
  for n in (1, 2):
    made = create(accumulation_steps=n)
    lowered = made.train_step.lower(made.state, made.batch)
    counts.append(compiling.count_step_flops(made, lowered))
  assert counts[0] == counts[1] > 0
  # XLA's own count, which is why the step is lowered once more.
  assert lowered.cost_analysis()["flops"] < 0.7 * counts[0]


def test_rules_say_what_they_take():
  rules = {
    "optimizer.learning_rate_rules": (("stem_conv", 0.1),),
    "sharding_rules": (("logits/kernel", (None, "model")),),
  }
  decay, rates, sharded, frozen = create(**rules, frozen_trunk=True).rules
  assert decay.startswith("optimizer.decay_exclude: norm/(scale|bias) takes ")
  assert rates.startswith("optimizer.learning_rate_rules: stem_conv takes ")
  assert sharded.startswith(
    "sharding_rules: logits/kernel takes 160 parameters"
  )
  assert frozen.startswith("frozen: what does not learn takes ")
  assert frozen.endswith("no rule takes 170 parameters (2 arrays)")


TEXT = text.TextInfo(257, None, num_eval_examples=10, num_train_examples=1000)


def test_a_step_is_made_without_data():
  config = language.get_config("test")
  config.data.files = "/nowhere/*.txt"
  with pytest.raises(ValueError, match="/nowhere"):
    experiment.create(config)
  made = experiment.create(config, jax.devices()[:2], TEXT)
  assert made.mesh.size == 2
  assert made.clock.total_steps == 12
  shapes = jax.eval_shape(made.train_step, made.state, made.batch)
  assert jax.tree.structure(shapes[0]) == jax.tree.structure(made.state)
  assert {"loss", "grad_norm"} <= set(shapes[1])
  images_config = digits.get_config("tiny")
  images_config.data.name = "nowhere"
  info = images.DatasetInfo(
    num_eval_examples=5, class_names=("a", "b"), num_train_examples=64
  )
  assert experiment.create(images_config, info=info).task.num_classes == 2


# Without a chip JAX cannot read what an earlier run kept, says so and compiles.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.compile
def test_a_step_is_compiled_for_chips_that_are_not_here():
  config = language.get_config("test")
  config.update_from_flattened_dict(
    {"mesh.fsdp": 2, "mesh.model": 2, "dtype": "bfloat16"}
  )
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x2"
  ).devices
  made = experiment.create(config, devices, TEXT)
  with jax.set_mesh(made.mesh):
    compiled = made.train_step.lower(made.state, made.batch).compile()
  assert compiled.memory_analysis().temp_size_in_bytes > 0
