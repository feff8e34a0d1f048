"""Every variant of every config: its parts are made, and its kind is run."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

import experiment
import models
from experiment import batches
from input_pipeline.images import transform_spec
from training import durations, evaluation, optimizers, schedules

_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FAMILIES = (
  "duoformer",
  "flowformer",
  "halonet",
  "maxvit",
  "mobilenet",
  "patch_mixers",
  "resnet_rs",
)
# Fields that make each family small, and the side of its images then.
SMALL = {
  "duoformer": (
    {
      "backbone": "resnet18",
      "backbone_options": {
        "depths": (1, 1, 1, 1),
        "widths": (4, 4, 4, 8),
        "stem_widths": (4, 4, 4),
      },
      "width": 8,
      "heads": 2,
      "scale_depth": 1,
      "patch_depth": 1,
    },
    32,
  ),
  "flowformer": (
    {"widths": (8,), "depths": (1,), "heads": 2, "image_size": 16},
    16,
  ),
  "halonet": (
    {
      "layout": (("conv", "halo"),),
      "widths": (8,),
      "bottleneck_widths": (4,),
      "strides": (2,),
      "heads": (2,),
      "block_size": 2,
      "halo_size": 1,
      "stem_width": 8,
    },
    16,
  ),
  "maxvit": (
    {
      "stem_widths": (4, 4),
      "widths": (8,),
      "depths": (1,),
      "head_dim": 4,
      "window_size": 2,
    },
    16,
  ),
  "mobilenet": (
    {"stages": ((2, 8, 1, 1),), "stem_width": 8, "replace": ()},
    16,
  ),
  "patch_mixers": (
    {
      "patch_size": 16,
      "width": 8,
      "depth": 1,
      "heads": 2,
      "hidden_width": 8,
      "token_hidden": 8,
      "image_size": 32,
    },
    32,
  ),
  "resnet_rs": (
    {"depths": (1,), "widths": (4,), "stem_widths": (4, 4, 4)},
    16,
  ),
}


def _variants():
  for family in FAMILIES:
    recipes = importlib.import_module(f"configs.{family}")
    for variant in recipes.VARIANTS:
      yield family, variant, recipes.get_config(variant)


ALL = [c for c in _variants() if not c[1].startswith("u_")]


def test_every_family_has_a_config_file():
  found = {path.stem for path in _CONFIGS.glob("*.py")}
  helpers = {"__init__", "common", "imagenet", "digits", "finetune"}
  helpers |= {"restoration", "fashion_mnist"}
  # With tests of their own.
  other_tasks = {
    "autoencoder",
    "diffusion",
    "dimr",
    "distillation",
    "hat",
    "language",
    "lina",
    "masked_diffusion",
    "mtair",
    "pairs",
    "potentials",
    "probing",
    "routing",
    "sequences",
    "shapes",
    "span",
    "vision_language",
  }
  other_tasks |= {"forecasting"}
  assert found - helpers - other_tasks == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_every_variant(family):
  variants = [c for c in _variants() if c[0] == family]
  assert "digits" in {variant for _, variant, _ in variants}
  for _, variant, config in variants:
    clock = durations.Clock(1_281_167, config.batch_size)
    total = clock.steps(config.train_for, "train_for")
    clock = durations.Clock(1_281_167, config.batch_size, total)
    schedule = schedules.create_schedule(config.optimizer, clock)
    assert float(schedule(total // 2)) > 0, variant
    optimizers.create_optimizer(config.optimizer, schedule)
    for field in ("train_transform", "eval_transform"):
      transform_spec.create_transform(
        config.data[field], image_size=config.data.image_size
      )
    fields = config.model.to_dict()
    model = models.create(fields.pop("name"), num_classes=10, **fields)
    assert config.data.image_size % 8 == 0
    assert model.size_multiple


def _kind(family, config):
  """What decides which code a step runs, but for numbers."""
  return (
    family,
    config.optimizer.name,
    config.optimizer.schedule,
    config.optimizer.clip_norm > 0,
    bool(config.optimizer.learning_rate_rules),
    config.loss.name,
    config.mixing.mixup_alpha > 0,
    config.mixing.cutmix_alpha > 0,
    config.ema.decay > 0,
    "auto_augment" in config.data.train_transform,
  )


KINDS = {
  _kind(family, config): (family, variant, config)
  for family, variant, config in reversed(ALL)
  if not variant.endswith(("digits", "fashion_mnist"))
}


def _small(family, config):
  fields, size = SMALL[family]
  config.model.update({k: v for k, v in fields.items()})
  config.data.name, config.data.channels = "fake", 3
  config.data.train_split, config.data.eval_split = "train", "test"
  config.data.image_size, config.data.num_threads = size, 1
  config.data.fake.train_examples = 16
  config.init.weights, config.init.part = "", ""
  # As many epochs, so that a warm-up in steps is no longer than the run.
  config.batch_size = config.eval_batch_size = 4
  config.train_for = "20_000 steps"
  config.dtype = "float32"
  return config


# A training step of a published network.
@pytest.mark.slow
@pytest.mark.parametrize(
  "kind", list(KINDS), ids=["-".join(KINDS[k][:2]) for k in KINDS]
)
def test_a_step_of_every_kind(kind):
  family, _, config = KINDS[kind]
  with config.unlocked():
    built = experiment.create(
      _small(family, config.copy_and_resolve_references())
    )
  batch = next(batches.create_train_batches(built))
  with jax.set_mesh(built.mesh):
    state = built.init()
    before = jax.device_get(state.params)
    # The first update of a warm-up has a learning rate of 0.
    for _ in range(2):
      state, metrics = built.train_step(
        state, evaluation.put_batch(batch, built.mesh)
      )
      # Two steps at a time on four devices of one CPU can wait for each other.
      jax.block_until_ready(metrics)
  assert np.isfinite(metrics["loss"])
  changed = jax.tree.map(
    lambda a, b: bool((a != b).any()), before, jax.device_get(state.params)
  )
  assert any(jax.tree.leaves(changed))
