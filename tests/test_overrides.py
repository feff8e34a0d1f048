"""Every field of every model can be given on the command line."""

import pytest
from ml_collections import config_dict

import experiment
import models
from configs import common

NAMES = {
  "maxvit_tiny_384": {"model.window_size": 12, "model.squeeze_ratio": 0.25},
  "halonet_h1": {"model.value_ratio": 1.0, "model.stem": "conv7"},
  "resnetrs_50_160": {"model.zero_last_scale": True, "model.block_norm": None},
  "duoformer_r50_2s": {"model.stages": (3, 2), "model.backbone": "resnet50"},
  "u_halonet_micro": {"model.depths": (2, 2, 9, 2)},
}


@pytest.mark.parametrize("name", NAMES)
def test_fields_have_the_values_of_the_model(name):
  config = common.get_config()
  config.model.name = name
  fields = experiment.optional_fields(config)
  for field, value in NAMES[name].items():
    assert (fields.get(field), type(fields.get(field))) == (value, type(value))
  settable = {n: v for n, v in fields.items() if v is not None}
  assert settable.keys() >= {
    f"model.{field}" for field in models.fields(name)
  } - {"model.dtype", "model.param_dtype", "model.num_classes"}
  config.update_from_flattened_dict(settable)
  overrides = config.model.to_dict()
  assert models.create(**overrides) == models.create(name)


def test_a_field_that_is_none_has_the_type_of_its_annotation():
  config = common.get_config()
  config.model.name = "halonet_h1"
  config.update_from_flattened_dict(
    {
      "model.key_dim": experiment.optional_fields(config)["model.key_dim"],
      "model.bottleneck_widths": config_dict.placeholder(tuple),
    }
  )
  assert config.model.get_type("key_dim") is int
  config.model.key_dim = 16
  with pytest.raises(TypeError):
    config.model.key_dim = "16"
