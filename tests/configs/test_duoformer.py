"""DuoFormer's configs against what the released script says."""

import pytest

import models
from configs import duoformer

# By scales: batch size and learning rate.
SCRIPT = {"2s": (128, 1e-4), "3s": (64, 5e-5), "4s": (16, 5e-5)}
RELEASED = [v for v in duoformer.VARIANTS if v != "digits"]


@pytest.mark.parametrize("variant", RELEASED)
def test_the_script_of_the_release(variant):
  config = duoformer.get_config(variant)
  trunk, scales = variant.split("_")[:2]
  batch_size, rate = SCRIPT[scales]
  assert config.model.name == f"duoformer_{variant}"
  assert config.batch_size == batch_size
  assert config.train_for == "50 epochs"
  assert config.data.image_size == 224
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.schedule) == ("adam", "onecycle")
  assert optimizer.learning_rate == rate
  assert optimizer.warmup == "30 percent"
  assert optimizer.final_learning_rate == pytest.approx(rate / 250_000)
  # PyTorch's Adam decays every parameter.
  assert (optimizer.weight_decay, optimizer.decay_exclude) == (1e-4, ())
  assert config.loss.name == "softmax"
  assert config.loss.label_smoothing == 0
  assert not config.frozen_trunk
  assert config.init.part == "trunk"
  weights = {"r50": "timm:resnet50.tv2_in1k", "r18": "timm:resnet18.tv_in1k"}
  assert config.init.weights == weights[trunk]


def test_every_model_has_a_config():
  names = {f"duoformer_{variant}" for variant in RELEASED}
  assert names == set(models.list("duoformer_*"))


def test_unknown_variants():
  with pytest.raises(ValueError, match=r"no variant 'r101_2s'; it has r18_2s"):
    duoformer.get_config("r101_2s")
