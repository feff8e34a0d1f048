"""A task can be made of every family's configs without its data."""

import importlib
import pathlib

import pytest

import tasks
from tools import absent_data

_CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Without those that only others use, and whose data are computed on the spot.
FAMILIES = sorted(
  {path.stem for path in _CONFIGS.glob("*.py")}
  - {"__init__", "common", "imagenet", "restoration"}
  - {"forecasting", "potentials"}
)

# Family, variant, and the classes or tokens that follow from it.
CONFIGS = (
  ("autoencoder", "test", None),
  ("digits", "tiny", 10),
  ("diffusion", "imagenet_256", 1000),
  ("diffusion", "moving_digits", 10),
  ("duoformer", "r18_2s", 10),
  ("finetune", "digits_5_9", 5),
  ("halonet", "h1", 1000),
  ("halonet", "h4_wide_in21k", 21_841),
  ("language", "gpt2", 50_257),
  ("language", "shakespeare_cpu", 65),
  ("language", "tiny", 257),
  ("hat", "df2k", None),
  ("lina", "digits", 10),
  ("lina", "imagenet_256", 1000),
  ("masked_diffusion", "records", 131),
  ("maxvit", "base_224", 1000),
  ("resnet_rs", "50_160", 1000),
  ("routing", "routers", None),
  ("sequences", "mqar", None),
  ("span", "df2k", None),
  ("span", "photographs_x2", None),
)


@pytest.mark.parametrize(("family", "variant", "number"), CONFIGS)
def test_a_task_is_made(family, variant, number):
  config = importlib.import_module(f"configs.{family}").get_config(variant)
  info = absent_data.info(config)
  assert info.num_train_examples > 0
  task = tasks.create(config, info)
  assert task.batch_spec(8, train=True)
  if number is not None:
    names = ("num_classes", "vocabulary_size")
    (made,) = (getattr(task.model, n) for n in names if hasattr(task.model, n))
    assert made == number


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_every_variant_is_known(family):
  configs = importlib.import_module(f"configs.{family}")
  for variant in configs.VARIANTS:
    config = configs.get_config(variant)
    info = absent_data.info(config)
    assert info.num_train_examples > 0, variant
    task = tasks.create(config, info)
    for train in (True, False):
      for array in task.batch_spec(12, train=train).values():
        assert array.shape[0] == 12, variant


def test_numbers_can_be_given():
  config = importlib.import_module("configs.lina").get_config("imagenet_256")
  config.model.text_width = 64
  info = absent_data.info(config, num_classes=7)
  assert len(info.class_names) == 7
  assert info.text_shape == (512, 64)
  tasks.create(config, info)
  config = importlib.import_module("configs.language").get_config("test")
  config.data.tokenizer = "/nowhere/tokenizer.json"
  with pytest.raises(ValueError, match="/nowhere"):
    absent_data.info(config)
  assert absent_data.info(config, vocabulary_size=99).vocabulary_size == 99
  config = importlib.import_module("configs.maxvit").get_config("tiny_224")
  config.data.name = "mine"
  assert len(absent_data.info(config, num_classes=3).class_names) == 3
