"""The benchmark of the input pipeline runs, and its images are as they should.

It runs in a process of its own, since all benchmarks name their flags alike.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import photographs

ROOT = Path(__file__).parents[2]


def run(*options):
  return subprocess.run(
    [sys.executable, "-m", "benchmarks.input_pipeline", "--json", *options],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )


# A process that imports everything anew.
@pytest.mark.slow
def test_rows():
  result = run(
    "--stages=crop",
    "--rounds=1",
    "--seconds=0",
    "--batch_size=2",
    "--workers=0",
  )
  assert result.returncode == 0, result.stderr
  rows = [
    json.loads(line)
    for line in result.stdout.splitlines()
    if line.startswith("{")
  ]
  stage, pipeline = rows
  assert stage["stage"] == "crop"
  assert stage["ours"] > 0
  ratios = {k for k in stage if k.startswith("ratio to ")}
  peers = stage.keys() & {"tf.data", "timm"}
  assert ratios == {f"ratio to {peer}" for peer in peers}
  assert pipeline["workers"] == 0
  assert pipeline["images per second of wall time"] > 0


# A process that imports everything anew.
@pytest.mark.slow
def test_unknown_stage():
  result = run("--stages=crops")
  assert result.returncode != 0
  assert "stages='crops' must be of decode, crop" in result.stderr


def test_photographs_have_the_spectrum_of_photographs():
  image = photographs.draw(0, (128, 128)).astype(float)
  assert image.shape == (128, 128, 3)
  assert 40 < image.std() < 55
  amplitude = np.abs(np.fft.fft2(image.mean(axis=-1)))
  # Along an axis, ten times the frequency is about a tenth of the amplitude.
  low = np.abs(amplitude[3:6, 3:6]).mean()
  high = np.abs(amplitude[30:60, 30:60]).mean()
  assert low / high == pytest.approx(10, rel=0.5)
  # The channels go together.
  channels = np.corrcoef(image.reshape(-1, 3).T)
  assert channels[0, 1] > 0.7
