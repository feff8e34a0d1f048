"""The scaling rules against the published table."""

import dataclasses

import jax
import pytest

import models
from models import resnet_rs_scaling
from tools import work

# Depth, resolution, RandAugment's M, stochastic depth, dropout, and FLOPs in
# thousand millions, two for a multiply-add, of the network at this size.
PUBLISHED = (
  (50, 160, 10, 0.0, 0.25, 4.56),
  (101, 160, 10, 0.0, 0.25, 8.36),
  (101, 192, 15, 0.0, 0.25, 12.02),
  (152, 192, 15, 0.0, 0.25, 17.49),
  (152, 224, 15, 0.0, 0.25, 23.79),
  (152, 256, 15, 0.0, 0.25, 31.06),
  (200, 256, 15, 0.1, 0.25, 40.19),
  (270, 256, 15, 0.1, 0.25, 53.90),
  (350, 256, 15, 0.1, 0.25, 68.75),
  (350, 320, 15, 0.1, 0.40, 107.37),
  (420, 320, 15, 0.1, 0.40, 127.88),
)


@pytest.mark.parametrize("row", PUBLISHED, ids=str)
def test_published_budgets_give_the_published_models(row):
  depth, resolution, magnitude, dropped, dropout, flops = row
  for budget in (1.001 * flops / 2, 1.1 * flops / 2):
    setting = resnet_rs_scaling.scale(budget * 1e9)
    assert dataclasses.astuple(setting) == (
      depth,
      resolution,
      1.0,
      magnitude,
      dropped,
      dropout,
    )
  assert round(2 * setting.multiply_adds / 1e9, 2) == flops


@pytest.mark.parametrize("row", PUBLISHED, ids=str)
def test_registered_models_have_these_rates(row):
  depth, resolution, _, dropped, dropout, _ = row
  for flavour in ("", "_swish") if depth != 420 else ("",):
    model = models.create(f"resnetrs_{depth}{flavour}_{resolution}")
    assert model.stochastic_depth_rate == dropped
    assert model.stochastic_depth_rule == "stage"
    assert model.dropout_rate == dropout
    assert model.batch_norm_momentum == 0
    garden = flavour == "_swish"
    assert model.activation == ("swish" if garden else "relu")
    assert model.padding == ("same" if garden else "symmetric")


def test_long_runs_scale_depth_and_short_runs_width():
  long = [resnet_rs_scaling.scale(b * 1e9) for b in (4, 10, 40)]
  short = [resnet_rs_scaling.scale(b * 1e9, epochs=10) for b in (4, 10, 40)]
  assert [s.depth for s in long] == [50, 152, 350]
  assert {s.width for s in long} == {1.0}
  assert {s.depth for s in short} == {50}
  assert [s.width for s in short] == [1.0, 1.5, 2.0]
  for a, b in zip(long, short, strict=True):
    assert a.resolution == b.resolution
    assert b.multiply_adds <= 40e9
    assert b.dropout_rate == 0
    assert b.rand_augment_magnitude is None


def test_multiply_adds_are_those_of_the_network():
  setting = resnet_rs_scaling.Setting(26, 90, width=0.5)
  model = models.create("resnetrs50", **setting.model_fields())
  image = jax.ShapeDtypeStruct((1, 90, 90, 3), "float32")
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  counted = work.count_work(model.apply, variables, image)
  assert setting.multiply_adds == counted.multiply_adds


def test_errors():
  with pytest.raises(ValueError, match=r"multiply_adds is 1e\+09.*-50 at 160"):
    resnet_rs_scaling.scale(1e9)
  with pytest.raises(ValueError, match="epochs is 0"):
    resnet_rs_scaling.scale(1e10, epochs=0)
