"""What holds of every name in `models.list()`."""

import dataclasses
import inspect

import pytest

import models
from models import registry
from tests.models import (
  test_duoformer,
  test_halonet,
  test_maxvit,
  test_resnet,
  test_u_halonet,
)

# Each family's test compares these numbers with what `init` makes.
COUNTED = {
  *test_duoformer.COUNTS,
  *test_halonet.COUNTS,
  *(name for name, *_ in test_maxvit._expected_counts()),
  *test_resnet.COUNTS,
  *test_u_halonet.COUNTS,
}


def test_every_model_has_an_expected_count():
  assert set(models.list()) == COUNTED


def test_names_that_others_rely_on():
  names = set(models.list())
  assert {f"halonet_h{i}" for i in range(8)} <= names
  assert {f"duoformer_r50_{n}s" for n in (2, 3, 4)} <= names
  published = (
    "50_160 101_160 101_192 152_192 152_224 152_256 200_256 270_256 350_256 "
    "350_320 420_320"
  )
  assert {f"resnetrs_{name}" for name in published.split()} <= names


@pytest.mark.parametrize("name", models.list())
def test_the_contract_of_a_model(name):
  model = models.create(name, num_classes=7)
  assert models.image_size(name) > 0
  fields = {field.name for field in dataclasses.fields(model)}
  shared = {"num_classes", "dtype", "param_dtype", "remat"}
  assert shared | {"stochastic_depth_rate"} <= fields
  for method in (model.features, model.classify, model.__call__):
    assert inspect.signature(method).parameters["train"].default is False
  assert isinstance(model.size_multiple, int)


def test_unknown_sizes():
  with pytest.raises(ValueError, match=r"'halonet_h9'; did you mean"):
    registry.image_size("halonet_h9")
