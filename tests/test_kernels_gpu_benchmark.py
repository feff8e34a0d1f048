"""The GPU benchmark says that it needs a GPU, and runs interpreted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*options):
  return subprocess.run(
    [sys.executable, "-m", "benchmarks.kernels_gpu", *options],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_needs_a_gpu():
  result = _run()
  assert result.returncode == 1
  assert "needs an NVIDIA GPU" in result.stderr


# Starts a program that interprets kernels.
@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["block", "sliding"])
def test_smoke(kernel):
  options = ("--smoke", "--rounds=1", "--seconds=0", f"--kernels={kernel}")
  result = _run(*options, "--json", "--passes=forward")
  assert result.returncode == 0, result.stderr
  (row,) = map(json.loads, result.stdout.splitlines())
  assert row["kernel"] == kernel
  assert row["chip"] == "interpreter"
  assert row["pass"] == "forward"
  assert row["ours_us"] > 0
  assert row["reference_us"] > 0
  assert row["ratio_reference"] == row["reference_us"] / row["ours_us"]
  for unknown in ("floor_us", "ratio_floor"):
    assert row[unknown] is None
  # JAX's own, where there is one that runs here; cuDNN does not.
  assert row["peer"] == ("jax.nn xla" if kernel == "sliding" else None)
  assert set(row["notes"]) == (
    {"jax.nn cudnn"} if kernel == "sliding" else set()
  )


def test_an_unknown_kernel_is_named():
  result = _run("--smoke", "--kernels=blok")
  assert result.returncode == 1
  assert "kernels='blok' must be of block, grid, plain" in result.stderr
