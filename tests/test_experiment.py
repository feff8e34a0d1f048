"""What an experiment says of itself before it runs."""

import pytest

import experiment
from configs import resnet_rs
from experiment import compiling


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
