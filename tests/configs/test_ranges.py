"""Numbers of a config that do not fit are errors before any work."""

import numpy as np
import pytest

import experiment
import tasks
from configs import common, digits
from experiment import ranges as experiment_ranges
from training import cli, optimizers, ranges


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_number_has_a_range(task):
  config = common.get_config(task)
  of_task = experiment_ranges.of_task(task)
  known = {*of_task, *(f"optimizer.{field}" for field in optimizers.RANGES)}
  flat = {name: _get(config, name) for name in cli.field_names(config)}
  numbers = {
    name
    for name, value in flat.items()
    if ranges.is_number(value) and not name.startswith("data.")
  }
  assert numbers <= known <= set(flat)
  experiment_ranges.check(config)


def _get(config, name):
  for part in name.split("."):
    config = config[part]
  return config


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("seed", 2**32, r"whole number in \[0, 4294967295\]"),
    ("seed", 10**400, "whole number"),
    ("seed", -1, "whole number"),
    ("seed", True, "whole number"),
    ("dtype", "bf16", "one of float32, bfloat16"),
    ("dtype", "int32", "one of float32, bfloat16"),
    ("loss.label_smoothing", 1.0, r"a number in \[0, 1\)"),
    ("mixing.mixup_alpha", -0.1, r"a number in \[0, inf\)"),
    ("mixing.cutmix_alpha", np.inf, "a number in"),
    ("ema.decay", 1.0, r"\[0, 1\)"),
    ("ema.decay", np.nan, r"\[0, 1\)"),
    ("mesh.fsdp", None, r"whole number in \[-1"),
    ("checkpoint.keep_last", 0, r"whole number in \[1, inf\)"),
  ],
)
def test_what_is_out_of_its_range(field, value, message):
  config = common.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=rf"^{field}=.* must be .*{message}"):
    experiment_ranges.check(config)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("seed", 2**32 - 1),
    ("loss.label_smoothing", 0),
    ("ema.decay", 0.9999),
    ("mesh.data", -1),
  ],
)
def test_what_is_in_its_range(field, value):
  config = common.get_config()
  config.update_from_flattened_dict({field: value})
  experiment_ranges.check(config)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("seed", 2**32 + 1, r"seed=4294967297 must be"),
    ("checkpoint.best_metric", "acuracy", r"'acuracy'.*mean accuracy\?"),
    ("optimizer.momentum", 0.8, "momentum=0.8 does nothing"),
    ("optimizer.decay_exclude", ("haed",), "decay_exclude has 'haed'"),
    ("sharding_rules", (("haed", (None,)),), "sharding_rules has 'haed'"),
  ],
)
def test_an_experiment_is_refused(field, value, message, tmp_path):
  config = digits.get_config("tiny")
  config.data.data_dir = str(tmp_path)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    experiment.create(config)
