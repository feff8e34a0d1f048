"""HaloNet's configs against what the fact sheet and the tables state."""

import pytest

import models
from configs import halonet
from tools import published

# Timm's default configurations: crop, mean and deviation of the pixels, size.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TIMM = {
  "h1_timm": (0.95, IMAGENET, 256),
  "halonet26t": (0.95, IMAGENET, 256),
  "sehalonet33ts": (0.94, IMAGENET, 256),
  "halonet50ts": (0.94, IMAGENET, 256),
  "eca_halonext26ts": (0.94, IMAGENET, 256),
  "haloregnetz_b": (0.94, HALF, 224),
  "halo2botnet50ts_256": (0.95, IMAGENET, 256),
}
SIZES = dict(h0=256, h1=256, h2=256, h3=320, h4=384, h5=448, h6=512, h7=600)
SIZES |= dict.fromkeys(("h7_conv1", "h7_conv2", "h7_conv3"), 600)


@pytest.mark.parametrize("variant", TIMM)
def test_timm_s_evaluation(variant):
  config = halonet.get_config(variant)
  ratio, (mean, std), size = TIMM[variant]
  assert config.data.eval_transform == f"resize_center_crop(ratio={ratio})"
  assert (config.data.mean, config.data.std) == (mean, std)
  assert config.data.image_size == size


@pytest.mark.parametrize("variant", SIZES)
def test_our_substitute_for_the_paper_s_recipe(variant):
  config = halonet.get_config(variant)
  assert config.model.name == f"halonet_{variant}"
  assert config.data.image_size == SIZES[variant]
  augmentation = "rand_augment(layers=2,magnitude=15)"
  assert augmentation in config.data.train_transform
  assert (config.train_for, config.batch_size) == ("350 epochs", 4096)
  assert config.loss.label_smoothing == 0.1
  assert config.optimizer.name == "sgd"
  assert config.optimizer.learning_rate == 1.6
  assert config.optimizer.warmup == "5 epochs"
  assert config.optimizer.schedule == "cosine"
  assert config.optimizer.weight_decay == 4e-5
  assert config.ema.decay == 0.9999


def test_mindcv_s_recipe():
  config = halonet.get_config("halonet50ts_mindcv")
  assert (config.model.name, config.data.image_size) == ("halonet50ts", 256)
  for part in (
    "rand_augment(layers=2,magnitude=9)",
    "random_erasing(probability=0.25)",
  ):
    assert part in config.data.train_transform
  assert (config.train_for, config.batch_size) == ("300 epochs", 512)
  assert (config.mixing.mixup_alpha, config.loss.label_smoothing) == (0.8, 0.1)
  assert config.optimizer.name == "adamw"
  assert config.optimizer.learning_rate == 1.25e-3
  assert config.optimizer.final_learning_rate == 6e-6
  assert config.optimizer.warmup == "3 epochs"
  assert config.optimizer.weight_decay == 0.04


@pytest.mark.parametrize(
  ("size", "dropped"),
  [("micro", 0), ("tiny", 0.2), ("small", 0.3), ("base", 0.5)],
)
def test_u_halonet(size, dropped):
  config = halonet.get_config(f"u_{size}")
  assert config.model.stochastic_depth_rate == dropped
  assert config.batch_size == 1024
  assert config.optimizer.learning_rate == 1e-3
  assert config.optimizer.final_learning_rate == 1e-5


def test_every_published_row_has_a_config():
  rows = published.rows("halonet")
  for row in rows:
    config = halonet.get_config(row.config)
    assert config.model.name == row.model
    assert config.data.image_size == row.resolution
    assert models.image_size(row.model) == row.resolution
  assert len({row.config for row in rows}) == 21


def test_unknown_variants():
  with pytest.raises(ValueError, match="has no variant 'h8'; it has digits"):
    halonet.get_config("h8")
