"""Names, overrides, and what a typing error is answered with."""

import pytest

import models


def test_list_matches_a_pattern():
  assert len(models.list("maxvit_*")) == 30
  assert models.list("maxvit_tiny_???") == [
    "maxvit_tiny_224",
    "maxvit_tiny_384",
    "maxvit_tiny_512",
  ]
  assert models.list("nothing*") == []


def test_overrides_win():
  model = models.create("maxvit_small_224", num_classes=10, widths=(32, 64))
  assert (model.num_classes, model.widths) == (10, (32, 64))
  assert model.depths == (2, 2, 5, 2)


def test_unknown_names_come_with_near_ones():
  with pytest.raises(ValueError, match=r"'maxvit_tiny224'.*maxvit_tiny_224"):
    models.create("maxvit_tiny224")
  with pytest.raises(ValueError, match=r"MaxViT 'num_class'.*num_classes"):
    models.create("maxvit_tiny_224", num_class=10)
  with pytest.raises(ValueError, match=r"known: .*maxvit_base_224"):
    models.create("zzz")
