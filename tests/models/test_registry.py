"""Names, overrides, and what a typing error is answered with."""

import sys
import types

import flax.linen as nn
import pytest

import models
from models import registry


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


@pytest.mark.parametrize(
  ("name", "field", "value"),
  [
    ("maxvit_tiny_224", "window_size", 7.0),
    ("maxvit_tiny_224", "window_size", True),
    ("maxvit_tiny_224", "depths", "2, 2"),
    ("maxvit_tiny_224", "depths", (2, "2")),
    ("maxvit_tiny_224", "stem_widths", (64, 64, 64)),
    ("maxvit_tiny_224", "bias_table_window", "7"),
    ("maxvit_tiny_224", "remat", 1),
    ("maxvit_tiny_224", "stochastic_depth_rate", "0.1"),
    ("halonet_h1", "layout", (("halo",), "conv")),
    ("duoformer_r50_2s", "backbone_options", (1, 2)),
  ],
)
def test_values_of_another_type(name, field, value):
  with pytest.raises(ValueError, match=rf"{field}=.* of {name} must be "):
    models.create(name, **{field: value})


def test_values_of_the_type_of_a_field():
  fields = {"stochastic_depth_rate": 0, "depths": [1, 2], "widths": (8, 16)}
  model = models.create("maxvit_tiny_224", bias_table_window=None, **fields)
  assert (model.stochastic_depth_rate, model.depths) == (0, [1, 2])
  assert models.fields("maxvit_tiny_384")["window_size"] == (int, 12)


class Words(nn.Module):
  """A language model to the registry."""

  vocabulary_size: int = 13


def test_families_of_two_kinds(monkeypatch):
  words = types.ModuleType("models.words")
  words.VARIANTS, words.KIND = {"words_small": (Words, {})}, "language"
  monkeypatch.setitem(sys.modules, "models.words", words)
  monkeypatch.setattr(registry, "FAMILIES", ("models.maxvit", "models.words"))
  assert models.kind("words_small") == "language"
  assert models.kind("maxvit_tiny_224") == "image"
  assert models.list(kind="language") == ["words_small"]
  assert models.list("maxvit*", kind="language") == []
  assert models.list(kind="image") == models.list("maxvit*")
  assert models.create("words_small", vocabulary_size=7).vocabulary_size == 7
  with pytest.raises(ValueError, match=r"words_small is a model of language"):
    models.image_size("words_small")
  with pytest.raises(ValueError, match=r"kind of model 'images'.*mean image"):
    models.list(kind="images")
  with pytest.raises(ValueError, match=r"model 'words_smal'.*words_small"):
    models.kind("words_smal")


def test_parts_are_there_once_they_are_named():
  assert callable(models.pretrained.from_huggingface)
  assert callable(models.decoding.generate)
  assert callable(models.taps.read)
  with pytest.raises(AttributeError, match="'pretraind'"):
    models.pretraind  # noqa: B018, to look is what raises.
