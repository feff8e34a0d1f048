"""Every config fits, and how many arrays its rules for weight decay take."""

import functools
import importlib

import jax
import pytest

import models
from experiment.ranges import RANGES
from tests.configs.test_recipes import SMALL
from training import optimizers, paths, ranges

# Networks with groups of channels, and those that have other fields.
_GROUPED = {"widths": (64,), "bottleneck_widths": (64,)}
_OTHER = {
  "eca_halonext26ts": _GROUPED,
  "haloregnetz_b": _GROUPED,
  "u_": {"depths": (1,), "widths": (32,)},
}
# They change no parameter's name, and would keep models from being equal.
_EQUAL = ("stochastic_depth_rate", "dropout_rate", "batch_norm_momentum")
_SHARED = {"maxvit": {"bias_table_window": 2, "remat": False}}
_NORM, _ANY_NORM = "norm/(scale|bias)", "(.+_)?norm/(scale|bias)"
# By the first of the variants that have them, in models of one block a stage:
# how many variants, and arrays by the rule that takes them; "" are those that
# decay.
COUNTS = {
  "duoformer": {
    # PyTorch's Adam decays every parameter. Further scales add projections.
    "r18_2s": (3, {"": 64}),
    "r18_2s_channel": (2, {"": 85}),
    "digits": (
      1,
      {"bias": 55, "scale": 29, "position": 2, "class_token": 1, "": 46},
    ),
  },
  "flowformer": {
    "digits": (
      1,
      {"bias": 28, "scale": 9, "position": 1, ".+_layer_scale": 4, "": 19},
    ),
    "224": (
      1,
      {"bias": 9, "scale": 3, "position": 1, ".+_layer_scale": 1, "": 6},
    ),
  },
  "halonet": {
    "digits": (1, {"bias": 19, "scale": 18, "": 25}),
    "halonet50ts_mindcv": (1, {"bias": 11, "scale": 10, "": 14}),
    "h0": (4, {_ANY_NORM: 16, "": 13}),
    "h3": (14, {_ANY_NORM: 18, "": 14}),
    "halonet26t": (3, {_ANY_NORM: 20, "": 15}),
    "sehalonet33ts": (1, {_ANY_NORM: 22, "": 20}),
    "eca_halonext26ts": (1, {_ANY_NORM: 20, "": 16}),
    "haloregnetz_b": (1, {_ANY_NORM: 16, "": 17}),
    "u_micro": (4, {"bias": 12, "scale": 6, ".+_layer_scale": 2, "": 11}),
  },
  "maxvit": {
    "digits": (
      1,
      {"bias": 62, "scale": 23, "relative_bias_table": 6, "": 45},
    ),
    "tiny_224": (
      44,
      {"bias": 25, "scale": 9, "relative_bias_table": 2, "": 18},
    ),
  },
  "mobilenet": {
    "v1": (1, {"bias": 5, "scale": 4, "": 5}),
    "v2": (2, {"bias": 6, "scale": 5, "": 6}),
    "v2_ela_base": (3, {"bias": 7, "scale": 6, "": 7}),
    "v1_ulsam": (1, {"bias": 9, "scale": 6, "": 7}),
    "v2_ulsam": (1, {"bias": 10, "scale": 7, "": 8}),
    "digits": (1, {"bias": 18, "scale": 17, "": 18}),
  },
  "patch_mixers": {
    "ninformer": (3, {"bias": 12, "scale": 3, "": 9}),
    "digits": (
      1,
      {"bias": 15, "scale": 5, "position": 1, "class_token": 1, "": 10},
    ),
    "fashion_mnist": (
      1,
      {"bias": 9, "scale": 3, "position": 1, "class_token": 1, "": 6},
    ),
    "mlp_digits": (2, {"bias": 9, "scale": 3, "": 6}),
  },
  "resnet_rs": {
    "digits": (1, {_NORM: 32, "": 30}),
    "50_160": (29, {_NORM: 16, "": 14}),
    # Without squeeze-excite, whose two biases a block decay.
    "study_0": (9, {_NORM: 10, "": 7}),
    "study_9": (1, {_NORM: 10, "": 11}),
  },
}


def _model(family, variant, config):
  fields, size = config.model.to_dict(), config.data.image_size
  for name in _EQUAL:
    fields.pop(name, None)
  if variant != "digits":
    small, size = SMALL[family]
    small = small | _SHARED.get(family, {})
    other = next((k for k in _OTHER if variant.startswith(k)), None)
    fields |= _OTHER[other] if other == "u_" else small | _OTHER.get(other, {})
  return models.create(fields.pop("name"), **fields), size, config.data.channels


@functools.cache
def _names(model, size, channels):
  image = jax.ShapeDtypeStruct((1, size, size, channels), "float32")
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  return tuple(paths.flatten_with_names(shapes["params"]))


def _decay(config, names):
  """Names by rule; whatever the modules around it are called, a kernel decays.

  A rule that takes nothing is an error.
  """
  groups = optimizers.group_by_rules(config, names)["decay_exclude"]
  assert {n for n in names if n.endswith("/kernel")} <= set(groups[""])
  return {rule: taken for rule, taken in groups.items() if taken}


@pytest.mark.parametrize("family", COUNTS)
def test_what_decays(family):
  recipes = importlib.import_module(f"configs.{family}")
  found = {}
  for variant in recipes.VARIANTS:
    config = recipes.get_config(variant)
    ranges.check(config, RANGES)
    optimizers.check_unused(config.optimizer)
    if "_3s" in variant or "_4s" in variant:
      continue
    names = _names(*_model(family, variant, config))
    counts = {k: len(v) for k, v in _decay(config.optimizer, names).items()}
    first = next((v for v, c in found.items() if c[1] == counts), variant)
    found[first] = (found.get(first, (0,))[0] + 1, counts)
    # `configs/finetune.py` has the default rules for any model.
    _decay(optimizers.default_config(), names)
  assert found == COUNTS[family]


def test_tokens_and_positions_do_not_decay_by_default():
  names = ["scale_tokens/scale_token", "patch_tokens/class_token"]
  names += ["scale_tokens/position", "patch_tokens/position"]
  kernels = ["scale_block_0/attention/qkv/kernel", "scale_tokens/fuse/kernel"]
  assert _decay(optimizers.default_config(), names + kernels)[""] == kernels
