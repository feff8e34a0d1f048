import collections

import numpy as np
import pytest

from input_pipeline.images import rand_augment, tf_operations, transforms
from tests import parity_helper

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


@pytest.fixture
def calls(monkeypatch):
  """Replaces the operations by ones that note their name and level."""
  noted = []

  def record(name):
    def operation(image, level, strength, rng):
      del rng
      noted.append((name, level, strength))
      return image

    return operation

  for name in tf_operations.OPERATIONS:
    monkeypatch.setitem(tf_operations.OPERATIONS, name, record(name))
  return noted


def run(transform, times):
  rng = np.random.default_rng(0)
  for _ in range(times):
    np.testing.assert_array_equal(transform(IMAGE, rng), IMAGE)


def test_each_layer_is_one_operation_at_the_level(calls):
  run(rand_augment.rand_augment(layers=3, magnitude=12), 1600)
  assert len(calls) == 3 * 1600
  counts = collections.Counter(name for name, _, _ in calls)
  assert counts.keys() == tf_operations.OPERATIONS.keys()
  # 300 each; the deviation of such a count is 17.
  assert 230 < min(counts.values()) <= max(counts.values()) < 370
  assert {level for _, level, _ in calls} == {12}
  assert {strength for _, _, strength in calls} == {
    tf_operations.Strength(translate=100, cutout=40, increasing=False)
  }
  # With replacement: the same operation twice in a row, one time in 16.
  twice = sum(calls[i][0] == calls[i + 1][0] for i in range(0, 4800, 3))
  assert 50 < twice < 150


def test_levels_scatter(calls):
  run(rand_augment.rand_augment(magnitude=2, magnitude_std=1), 1000)
  levels = np.array([level for _, level, _ in calls])
  assert levels.min() == 0
  assert np.median(levels) == pytest.approx(2, abs=0.1)
  assert np.percentile(levels, 84) == pytest.approx(3, abs=0.15)


def test_operations_can_be_chosen(calls):
  run(rand_augment.rand_augment(operations=("Invert", "Rotate")), 50)
  assert {name for name, _, _ in calls} == {"Invert", "Rotate"}
  calls.clear()
  run(rand_augment.rand_augment(exclude=("Cutout",), increasing=True), 500)
  names = {name for name, _, _ in calls}
  assert names == tf_operations.OPERATIONS.keys() - {"Cutout"}
  assert all(strength.increasing for _, _, strength in calls)


def test_no_layers_leave_the_image():
  run(rand_augment.rand_augment(layers=0), 1)


def test_layers_are_applied_one_after_another():
  # Inverting twice is nothing, and once is not.
  run(rand_augment.rand_augment(layers=2, operations=("Invert",)), 1)
  once = rand_augment.rand_augment(layers=1, operations=("Invert",))
  inverted = once(IMAGE, np.random.default_rng(0))
  np.testing.assert_array_equal(inverted, 255 - IMAGE)


def test_auto_augment_draws_a_pair_and_a_probability(calls):
  run(rand_augment.auto_augment(), 5000)
  expected = collections.Counter()
  for pair in rand_augment._POLICY_V0:
    for name, probability, level in pair:
      expected[name, level] += 5000 / 25 * probability
  counts = collections.Counter((name, level) for name, level, _ in calls)
  assert counts.keys() == {k for k, v in expected.items() if v}
  for key, count in counts.items():
    assert abs(count - expected[key]) < 5 * np.sqrt(expected[key]), key
  assert {strength.translate for _, _, strength in calls} == {250}


@pytest.mark.parity
def test_policy_is_timms():
  parity_helper.import_timm()
  from timm.data import auto_augment

  ours = [[list(op) for op in pair] for pair in rand_augment._POLICY_V0]
  theirs = [
    # timm moves by a share of the side.
    [[op.name.removesuffix("Rel"), op.prob, op.magnitude] for op in pair]
    for pair in auto_augment.auto_augment_policy_v0(
      auto_augment._HPARAMS_DEFAULT
    )
  ]
  assert ours == theirs


@pytest.mark.parity
@pytest.mark.parametrize(
  ("name", "increasing"),
  [
    ("AutoContrast", False),
    ("Equalize", False),
    ("Invert", False),
    ("Posterize", False),
    ("Posterize", True),
    ("Solarize", False),
    ("Solarize", True),
    ("Color", False),
    ("Brightness", False),
    ("Sharpness", False),
    ("SolarizeAdd", False),
  ],
)
def test_operation_is_timms_where_it_is_the_same(name, increasing):
  # At level 9, for timm stops SolarizeAdd at 128.
  parity_helper.import_timm()
  from timm.data import auto_augment

  theirs = auto_augment.AugmentOp(
    name + "Increasing" * increasing, prob=1.0, magnitude=9
  )
  pil = transforms.to_pil(IMAGE)
  ours = tf_operations.OPERATIONS[name](
    pil,
    9,
    tf_operations.Strength(100, 40, increasing),
    np.random.default_rng(0),
  )
  np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs(pil)))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(operations=("Blur",)), "'Blur' is no operation of RandAugment"),
    (dict(exclude=("cutout",)), "'cutout' is no operation of RandAugment"),
    (dict(operations=("Cutout",), exclude=("Cutout",)), "no operation"),
    (dict(layers=-1), "layers is -1"),
    (dict(layers=1.5), "layers is 1.5"),
    (dict(magnitude=-1), "magnitude is -1"),
    (dict(magnitude_std=-1), "magnitude_std is -1"),
  ],
)
def test_faults(options, message):
  with pytest.raises(ValueError, match=message):
    rand_augment.rand_augment(**options)


def test_unknown_policy():
  with pytest.raises(ValueError, match="policy is 'v9', but must be v0"):
    rand_augment.auto_augment("v9")
