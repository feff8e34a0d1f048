"""The arithmetic of a run against what the fact sheet's numbers give."""

import pytest

from configs import maxvit
from tools import training_cost


def test_estimate_of_a_published_run():
  cost = training_cost.estimate(maxvit.get_config("tiny_224"))
  assert cost.steps == round(300 * 1_281_167 / 4096)
  # 5.55 thousand millions of multiply-adds for an image, forward.
  expected = 300 * 1_281_167 * 3 * 2 * 5.55e9
  assert cost.flops == pytest.approx(expected, rel=2e-3)
  hours = cost.chip_hours("TPU v5e", 0.5)
  assert hours == pytest.approx(expected / (197e12 / 2) / 3600, rel=2e-3)


def test_bad_utilisation(capsys):
  with pytest.raises(SystemExit):
    training_cost.main(["maxvit", "--utilisation=1.5"])
  assert "utilisation is 1.5" in capsys.readouterr().err
