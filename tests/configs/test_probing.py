"""The recipe of efficient probing against what its code and logs have."""

import jax
import pytest

import experiment
import models
import tasks
from configs import probing
from experiment import ranges
from tools import absent_data
from training import optimizers, paths


def test_the_recipe_of_the_paper():
  config = probing.get_config("mae_base")
  assert config.model.to_dict() == {
    "name": "probed_vit_base_16_224",
    "probe": "ep",
    "probe_options": {"queries": 32},
  }
  assert (config.init.weights, config.init.part) == (
    "timm:vit_base_patch16_224.mae",
    "trunk",
  )
  assert config.frozen_trunk
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.schedule) == ("lars", "cosine")
  assert (optimizer.momentum, optimizer.trust_coefficient) == (0.9, 0.001)
  assert (optimizer.weight_decay, optimizer.final_learning_rate) == (0, 0)
  assert optimizer.learning_rate == pytest.approx(1.6)
  assert optimizer.warmup == "10 epochs"
  assert (config.batch_size, config.train_for) == (4096, "90 epochs")
  assert config.data.train_transform == "random_resized_crop|flip"
  assert config.data.eval_transform == "resize_center_crop(ratio=0.875)"
  assert config.loss.label_smoothing == 0


@pytest.mark.parametrize("variant", probing.VARIANTS)
def test_every_variant_can_be_made(variant):
  config = probing.get_config(variant)
  ranges.check(config)
  optimizers.check_unused(config.optimizer)
  models.create(**config.model.to_dict())
  if variant != "mae_large":
    return
  config.model.backbone_options = {"depth": 1, "normalized_features": False}
  built = experiment.create(config, info=absent_data.info(config))
  # As the authors' log counts what is trained.
  trained = [line for line in built.rules if "frozen" in line]
  assert "2,106,344" in trained[0]
  assert built.clock.total_steps == 28_151


def test_what_decays_would_be_kernels_and_tokens():
  config = probing.get_config("digits")
  task = tasks.create(config, absent_data.info(config))
  names = paths.flatten_with_names(
    jax.eval_shape(task.init, jax.random.key(0))["params"]
  )
  groups = optimizers.group_by_rules(config.optimizer, names)
  decayed = set(groups["decay_exclude"][""])
  assert {"head/pool/queries", "head/pool/value_kernel"} < decayed
  assert not any(name.endswith(("bias", "position")) for name in decayed)


def test_unknown_variants():
  with pytest.raises(ValueError, match="no variant 'mae'; it has mae_base"):
    probing.get_config("mae")
