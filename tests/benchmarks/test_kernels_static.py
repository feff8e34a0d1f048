"""The static benchmark prints what it promises, for a real chip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process that compiles for a chip.
pytestmark = [pytest.mark.compile, pytest.mark.slow]
pytest.importorskip("libtpu")


def test_a_row_has_bundles_floor_and_ratio(tmp_path):
  # In a process of its own: libtpu reads where to dump when it is loaded.
  command = [
    sys.executable,
    "-m",
    "benchmarks.kernels_static",
    "--json",
    "--chips=v5e",
    "--passes=forward",
    "--only=window block stage 4",
  ]
  output = subprocess.run(
    command,
    cwd=Path(__file__).parents[2],
    env=os.environ | {"TMPDIR": str(tmp_path)},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  # What libtpu wrote takes gigabytes where it is left.
  assert not list(tmp_path.iterdir())
  row = json.loads(output.splitlines()[-1])
  assert row["kernel"] == "window block stage 4"
  assert (row["chip"], row["pass"]) == ("v5e", "forward")
  # 256 images of one window: more than the matrix units' least, and less than
  # any compiler's partition with a matrix of scores.
  assert 100_000 < row["bundles"] < 1_000_000
  assert row["ours_us"] >= row["floor_us"] > 0
  assert row["ratio_reference"] > 4
