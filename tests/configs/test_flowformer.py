"""Flowformer's config against what the released script says."""

import pytest

import models
from configs import flowformer


def test_the_script_of_the_release():
  config = flowformer.get_config("224")
  model = models.create(config.model.name)
  assert (model.outer_epsilon, model.layer_scale, model.clip) == (1e-6, 1e-5, 1)
  assert config.model.stochastic_depth_rate == 0.2
  assert (config.batch_size, config.train_for) == (128 * 6, "300 epochs")
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.schedule) == ("adamw", "cosine")
  assert optimizer.learning_rate == pytest.approx(5e-4 * 768 / 512)
  assert optimizer.final_learning_rate == 1e-5
  assert optimizer.warmup == "5 epochs"
  assert (optimizer.weight_decay, optimizer.clip_norm) == (0.05, 1.0)
  assert config.loss.label_smoothing == 0.1
  assert (config.mixing.mixup_alpha, config.mixing.cutmix_alpha) == (0.8, 1.0)
  assert config.data.eval_transform == "resize_center_crop(ratio=0.875)"


def test_unknown_variants():
  with pytest.raises(ValueError, match=r"no variant '225'; it has 224, digits"):
    flowformer.get_config("225")
