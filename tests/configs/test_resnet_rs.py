"""ResNet-RS's recipes against the numbers of the paper and its code."""

import pathlib

import jax
import pytest

import experiment
import models
from configs import resnet_rs
from tools import published
from training import durations, optimizers, schedules

_SWEEP = (
  pathlib.Path(__file__).parents[2] / "configs/sweeps/resnet_rs_study.txt"
)

# RandAugment's M, stochastic depth, dropout.
PUBLISHED = {
  "50_160": (10, 0.0, 0.25),
  "101_160": (10, 0.0, 0.25),
  "101_192": (15, 0.0, 0.25),
  "152_192": (15, 0.0, 0.25),
  "152_224": (15, 0.0, 0.25),
  "152_256": (15, 0.0, 0.25),
  "200_256": (15, 0.1, 0.25),
  "270_256": (15, 0.1, 0.25),
  "350_256": (15, 0.1, 0.25),
  "350_320": (15, 0.1, 0.4),
  "420_320": (15, 0.1, 0.4),
}
CASES = [
  *PUBLISHED,
  *(f"{v}_swish" for v in PUBLISHED if not v.startswith("420")),
]


@pytest.mark.parametrize("variant", CASES)
def test_published(variant):
  config = resnet_rs.get_config(variant)
  magnitude, dropped, dropout = PUBLISHED[variant.removesuffix("_swish")]
  depth, size = variant.split("_")[:2]
  flavour = "_swish" if variant.endswith("_swish") else ""
  assert config.model.name == f"resnetrs_{depth}{flavour}_{size}"
  assert config.model.stochastic_depth_rate == dropped
  assert config.model.dropout_rate == dropout
  assert config.model.batch_norm_momentum == 0
  assert config.data.image_size == int(size)
  assert config.data.train_transform == (
    "random_resized_crop(antialias=False)|flip"
    f"|rand_augment(layers=2,magnitude={magnitude})"
  )
  assert config.data.eval_transform == "center_crop|resize(antialias=False)"
  assert config.data.mean == (0.485, 0.456, 0.406)
  assert config.data.std == (0.229, 0.224, 0.225)
  assert (config.train_for, config.batch_size) == ("350 epochs", 4096)
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
  assert (optimizer.learning_rate, optimizer.final_learning_rate) == (1.6, 0)
  assert (optimizer.schedule, optimizer.warmup) == ("cosine", "5 epochs")
  assert (optimizer.weight_decay, optimizer.clip_norm) == (4e-5, 0)
  assert (config.ema.decay, config.ema.warmup) == (0.9999, True)
  assert (config.loss.name, config.loss.label_smoothing) == ("softmax", 0.1)
  assert config.mixing.mixup_alpha == config.mixing.cutmix_alpha == 0


def test_learning_rate():
  config = resnet_rs.get_config("50_160")
  clock = durations.Clock(1_281_167, config.batch_size)
  steps = clock.steps(config.train_for)
  assert steps == 109_475
  clock = durations.Clock(1_281_167, config.batch_size, steps)
  rate = schedules.create_schedule(config.optimizer, clock)
  assert rate(0) == 0
  assert rate(1_564) == pytest.approx(1.6)
  assert rate(782) == pytest.approx(0.8)
  assert rate((1_564 + 109_475) // 2) == pytest.approx(0.8, abs=1e-3)
  assert rate(109_475) == pytest.approx(0, abs=1e-6)


def test_all_but_normalisation_decays():
  config = resnet_rs.get_config("50_160")
  model = models.create("resnetrs50", depths=(1, 1), widths=(8, 8))
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
  params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  mask = optimizers.decay_mask(params, config.optimizer.decay_exclude)
  for path, decays in jax.tree_util.tree_leaves_with_path(mask):
    names = [key.key for key in path]
    assert decays == ("norm" not in names), names
  block = mask["stage_0"]["block_0"]
  assert mask["head"]["logits"]["bias"]
  assert block["se"]["reduce"]["bias"]
  assert not block["conv_0"]["norm"]["bias"]


def _of_study(config):
  """One value of each ingredient, in the order of table 1."""
  model = models.create(**config.model)
  return (
    config.optimizer.schedule,
    config.train_for,
    config.ema.decay,
    config.loss.label_smoothing,
    config.model.stochastic_depth_rate,
    "rand_augment(layers=2,magnitude=15)" in config.data.train_transform,
    config.model.dropout_rate,
    config.optimizer.weight_decay,
    model.squeeze_ratio,
    (model.stem, model.shortcut),
  )


def test_additive_study():
  without = ("stepwise", "90 epochs", 0.0, 0.0, 0.0, False, 0.0, 1e-4, 0.0)
  without += (("conv7", "conv"),)
  ingredients = ("cosine", "350 epochs", 0.9999, 0.1, 0.1, True, 0.25, 4e-5)
  ingredients += (0.25, ("deep", "average_pool"))
  for row in range(11):
    config = resnet_rs.get_config(f"study_{row}")
    assert _of_study(config) == ingredients[:row] + without[row:]
    # The average of all variables is what makes up for a momentum of 0.
    assert (config.model.batch_norm_momentum == 0) == (config.ema.decay > 0)
  assert config == resnet_rs.get_config("200_256")


# Timm's default sizes and crops.
TIMM = {
  50: (160, 0.91),
  101: (192, 0.94),
  152: (256, 1),
  200: (256, 1),
  270: (256, 1),
  350: (288, 1),
  420: (320, 1),
}


@pytest.mark.parametrize("depth", TIMM)
def test_timm(depth):
  config = resnet_rs.get_config(f"timm_{depth}")
  size, crop = TIMM[depth]
  assert config.model.name == f"resnetrs{depth}"
  assert config.data.image_size == size
  assert config.data.eval_transform == f"resize_center_crop(ratio={crop})"


def test_every_published_row_on_public_data_has_a_config():
  rows = published.rows("resnet_rs")
  for row in rows:
    assert bool(row.config) == ("pseudo" not in row.train_data), row
    if row.config:
      config = resnet_rs.get_config(row.config)
      assert config.model.name == row.model
      # Timm also evaluates at sizes larger than the default.
      timm = row.config.startswith("timm")
      assert timm or config.data.image_size == row.resolution
  assert len({row.config for row in rows}) > 25


def test_digits_make_an_experiment():
  config = resnet_rs.get_config("digits")
  made = experiment.create(config)
  assert made.task.num_classes == 10
  assert made.state.params["head"]["logits"]["kernel"].shape[1] == 10
  assert config.model.batch_norm_momentum == 0
  assert config.ema.decay == 0.99


def test_unknown_variants():
  with pytest.raises(ValueError, match="no variant '50_224'; it has digits"):
    resnet_rs.get_config("50_224")


def test_the_sweep_is_the_study():
  lines = _SWEEP.read_text()
  commands = [x for x in lines.splitlines() if not x.startswith("#")]
  studies = [v for v in resnet_rs.VARIANTS if v.startswith("study_")]
  assert len(commands) == len(studies) == 11
  for command, variant in zip(commands, studies, strict=True):
    assert command.startswith(f"--config=configs/resnet_rs.py:{variant} ")
    assert command.endswith(f"--workdir=runs/{variant}")
