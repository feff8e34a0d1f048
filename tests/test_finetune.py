"""Starting from weights: what is kept, what is new, what stays frozen."""

import importlib
from unittest import mock

import jax
import numpy as np
import pytest

import experiment
import models
import train
from configs import digits, finetune
from experiment import layer_rates, weights
from models import registry
from training import checkpoints, paths, summary

# Each trains, or makes models of published size.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _no_pictures():
  with mock.patch.object(summary, "finish"):
    yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def tiny(data_dir, **fields):
  config = digits.get_config("tiny")
  config.data.data_dir = data_dir
  # Stores tables for its own windows, unlike maxvit_tiny_224.
  config.model.name = "maxvit_tiny_tf_224"
  config.train_for = "2 steps"
  config.evaluate_every = config.checkpoint.every = "2 steps"
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope="module")
def pretrained_run(data_dir, tmp_path_factory):
  """The workdir of a run on five of the digits, and its last variables."""
  workdir = str(tmp_path_factory.mktemp("pretrained"))
  config = tiny(data_dir)
  config.data.classes = (0, 1, 2, 3, 4)
  state = train.train_and_evaluate(config, workdir)
  return workdir, jax.device_get(state.variables())


def fine_tune(data_dir, source, workdir, **fields):
  config = tiny(data_dir, **fields)
  config.data.classes = (5, 6, 7)
  config.init.weights = source
  config.init.replace_head = True
  state = train.train_and_evaluate(config, str(workdir))
  return {
    name: paths.flatten_with_names(jax.device_get(tree))
    for name, tree in (
      ("params", state.params),
      ("batch_stats", state.collections["batch_stats"]),
    )
  }


def test_a_frozen_trunk_stays_as_it_was(data_dir, pretrained_run, tmp_path):
  source, before = pretrained_run
  after = fine_tune(
    data_dir,
    source,
    tmp_path,
    frozen_trunk=True,
    **{
      "model.stochastic_depth_rate": 0.5,
      # A rule for what does not learn is harmless.
      "optimizer.learning_rate_rules": (("stem", 0.5), ("head", 0.5)),
    },
  )
  for collection in ("params", "batch_stats"):
    old = paths.flatten_with_names(before[collection])
    assert old.keys() == after[collection].keys()
    for name, value in after[collection].items():
      if name.startswith("head"):
        assert value.shape != old[name].shape or (value != old[name]).any()
      else:
        np.testing.assert_array_equal(value, old[name], err_msg=name)


def test_rules_scale_the_steps(data_dir, pretrained_run, tmp_path):
  source, before = pretrained_run
  after = fine_tune(
    data_dir,
    source,
    tmp_path,
    **{"optimizer.learning_rate_rules": (("stem", 0.0), ("mbconv", 1e-3))},
  )
  old = paths.flatten_with_names(before["params"])
  moved = {
    name: np.abs(value - old[name]).max()
    for name, value in after["params"].items()
    if value.shape == old[name].shape
  }
  assert {d for n, d in moved.items() if n.startswith("stem")} == {0.0}
  slow = [d for n, d in moved.items() if "mbconv" in n and "kernel" in n]
  fast = [d for n, d in moved.items() if "ffn" in n and "kernel" in n]
  # AdamW's steps are as long as the learning rate, whatever the gradient.
  assert 0 < max(slow) < 0.01 * min(fast)
  # Statistics go on, since only parameters have learning rates.
  statistics = paths.flatten_with_names(before["batch_stats"])
  assert (after["batch_stats"]["stem/norm_0/mean"] != 0).any()
  assert any(
    (after["batch_stats"][n] != statistics[n]).any() for n in statistics
  )


def test_larger_images_and_windows(data_dir, pretrained_run):
  """MaxViT's transfer: tables are interpolated, all else is kept."""
  source, before = pretrained_run
  config = tiny(
    data_dir,
    **{"data.image_size": 32, "model.window_size": 4},
  )
  config.data.classes = (0, 1, 2, 3, 4)
  config.init.weights = source
  built = experiment.create(config)
  with jax.set_mesh(built.mesh):
    with pytest.raises(ValueError, match=r"resize_tables=True"):
      weights.initial_state(built)
    config.init.resize_tables = True
    state = weights.initial_state(built)
  old = paths.flatten_with_names(before["params"])
  for name, value in paths.flatten_with_names(state.params).items():
    if name.endswith("relative_bias_table"):
      assert value.shape == (1, 7, 7)
      np.testing.assert_allclose(value[0, 3, 3], old[name][0, 1, 1], rtol=1e-5)
    else:
      np.testing.assert_array_equal(value, old[name], err_msg=name)
  jax.tree.map(np.testing.assert_array_equal, state.ema["params"], state.params)


def test_faults(data_dir, pretrained_run, tmp_path):
  source, _ = pretrained_run
  cases = (
    ({"init.weights": source}, r"replace_head=True leaves it out"),
    ({"init.weights": str(tmp_path)}, "holds no run|no run"),
    ({"init.weights": source, "init.step": "7"}, r"has the steps \[2\]"),
    ({"init.weights": source, "init.step": "x"}, "none of last, best"),
    (
      {"optimizer.learning_rate_rules": (("zzz", 1.0),)},
      "matches no parameter",
    ),
    ({"optimizer.learning_rate_rules": (("(", 1.0),)}, "no[t]? a regular"),
    ({"optimizer.learning_rate_rules": (("a", -1.0),)}, "not negative"),
  )
  for index, (fields, message) in enumerate(cases):
    config = tiny(data_dir, **fields)
    config.data.classes = (5, 6, 7)
    workdir = tmp_path / f"run_{index}"
    with pytest.raises(ValueError, match=message):
      train.train_and_evaluate(config, str(workdir))
    # The corrected command may use the same workdir.
    assert not (workdir / "config.json").exists()


def test_a_damaged_checkpoint_is_refused(pretrained_run, monkeypatch):
  source, before = pretrained_run
  store = checkpoints.Checkpoints(
    source,
    digits.get_config("tiny").checkpoint,
    {"accuracy": "max"},
    read_only=True,
  )
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  read = store.restore_variables(2, here, averaged=True)
  jax.tree.map(np.testing.assert_array_equal, read, before)
  monkeypatch.setattr(
    checkpoints.fingerprints, "fingerprint", lambda tree: {"params/x": 1}
  )
  with pytest.raises(checkpoints.CheckpointError, match="1 of 1 arrays"):
    store.restore_variables(2, here, averaged=True)


def _rules(config):
  """The learning-rate rules that `experiment.create` makes of a config."""
  fields = config.model.to_dict()
  size = config.data.image_size
  shapes = jax.eval_shape(
    models.create(**fields).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, size, size, config.data.channels), np.float32),
  )
  names = paths.flatten_with_names(shapes["params"])
  with_rules = layer_rates.with_layer_rules(config, names)
  return names, with_rules.optimizer.learning_rate_rules


def test_rules_of_the_digits():
  config = finetune.get_config("digits_5_9_layers")
  patterns, factors = zip(*_rules(config)[1], strict=True)
  assert patterns == (
    r"stem(_\w+)?",
    "stage_0/block_0",
    "stage_1/block_0",
    "stage_2/block_0",
  )
  assert factors == pytest.approx((0.0625, 0.125, 0.25, 0.5))


def test_rules_are_those_of_the_final_model(data_dir):
  """And not of the one that the config file began with."""
  config = finetune.get_config("digits_5_9_layers")
  config.model.depths, config.model.widths = (1, 2), (32, 64)
  patterns = [pattern for pattern, _ in _rules(config)[1]]
  assert patterns[1:] == [
    "stage_0/block_0",
    "stage_1/block_0",
    "stage_1/block_1",
  ]
  config.optimizer.learning_rate_rules = (("stem", 0.5),)
  with pytest.raises(ValueError, match="both give layers"):
    _rules(config)
  config.optimizer.stem_factor = 1
  assert _rules(config)[1] == (("stem", 0.5),)
  config.data.data_dir = data_dir
  config.optimizer.update(stem_factor=0.0, learning_rate_rules=())
  with pytest.raises(ValueError, match=r"stem_factor=0.0 must be .*\(0, 1\]"):
    experiment.create(config)


# By family: a model, and layers of it in order of depth.
LAYERS = {
  "maxvit": ("maxvit_tiny_384", [r"stem(_\w+)?", "stage_2/block_4"]),
  "resnet": ("resnetrs_50_160", [r"stem(_\w+)?", "stage_0/block_2"]),
  "halonet": (
    "halonet_h4",
    [r"stem(_\w+)?", "stage_3/block_2", "final_(conv|norm)"],
  ),
  "u_halonet": ("u_halonet_micro", [r"stem(_\w+)?", "stage_3/block_1"]),
  "probed": (
    "probed_vit_tiny_16_224",
    [
      r"(position_|token_type_)?embed(_norm)?",
      "block_11",
      "final_(conv|norm)",
    ],
  ),
  "flowformer": (
    "flowformer_224",
    [r"stem(_\w+)?", "stage_2/block_9", "stage_3/block_0"],
  ),
  "mobilenet": (
    "mobilenetv2_100",
    [r"stem(_\w+)?", "stage_3/block_2", "final_(conv|norm)"],
  ),
  "patch_mixers": (
    "vit_tiny_16_224",
    [
      r"(position_|token_type_)?embed(_norm)?",
      "block_11",
      "final_(conv|norm)",
    ],
  ),
  "perceptron": ("perceptron", ["layer_0", "layer_1"]),
  "duoformer": (
    "duoformer_r50_2s",
    [
      r"stem(_\w+)?",
      "stage_3/block_2",
      "scale_tokens",
      "scale_block_9",
      "scale_block_10",
      "patch_tokens",
      "patch_layer_11",
    ],
  ),
}


@pytest.mark.parametrize(
  "family",
  [
    family.removeprefix("models.")
    for family in registry.FAMILIES
    if importlib.import_module(family).KIND == "image"
  ],
)
def test_layer_rules(family):
  name, layers = LAYERS[family]
  config = finetune.get_config(name)
  side = models.image_size(name)
  assert config.data.image_size == side
  names, rules = _rules(config)
  patterns, factors = zip(*rules, strict=True)
  assert [p for p in patterns if p in layers] == layers
  ratios = np.array(factors[1:] + (1,)) / factors
  np.testing.assert_allclose(ratios, ratios[0])
  assert ratios[0] > 1
  assert factors[0] == pytest.approx(0.75**12)
  of = {
    n: [p for p in patterns if paths.first_match([p], n) is not None]
    for n in names
  }
  assert {n for n, found in of.items() if len(found) != 1} == {
    n for n in names if n.startswith("head/")
  }
  # The optimizer refuses one that matches nothing.
  assert {p for found in of.values() for p in found} == set(patterns)


def test_layer_rules_of_a_transformer():
  model = models.create("gpt2", depth=11, width=4, heads=1, max_length=4)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), np.int32)
  )
  names = paths.flatten_with_names(shapes["params"])
  rules = layer_rates.layer_rules(names, 0.1)
  assert [pattern for pattern, _ in rules] == [
    r"(position_|token_type_)?embed(_norm)?",
    *(f"layer_{i}" for i in range(11)),
    "final_(conv|norm)",
  ]
  for name in names:
    taking = [p for p, _ in rules if paths.first_match([p], name) is not None]
    assert len(taking) == 1, name


def test_unknown_variants():
  with pytest.raises(ValueError, match="no variant 'maxvit'"):
    finetune.get_config("maxvit")
