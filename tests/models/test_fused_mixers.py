"""Options of the language model's mixers run in kernels, without a score array.

Add a line to `FUSED` of `mixer_kernels`, or to `REFERENCE` with the reason.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import mixer_kernels
from tests.models.mixer_kernels import FUSED, REFERENCE

ROOT = Path(__file__).parents[2]
PLATFORMS = ("tpu", "gpu")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", FUSED)
def test_a_training_step_has_kernels_and_no_array_of_scores(name, platform):
  fields = FUSED[name]
  count, largest = mixer_kernels.kernels_and_largest(name, fields, platform)
  # Forward, and backward for queries and for keys.
  assert count >= 3
  assert largest < mixer_kernels.scores(fields)


@pytest.mark.parametrize("name", ["full", "sliding, LSSAR"])
def test_the_reference_has_an_array_of_scores(name):
  """Or the test above would find none whatever there is."""
  fields = FUSED[name]
  count, largest = mixer_kernels.kernels_and_largest(name, fields, "auto")
  assert count == 0
  assert largest >= mixer_kernels.scores(fields)


@pytest.mark.parametrize("name", REFERENCE)
def test_what_no_kernel_takes(name):
  fields, platforms, reason = REFERENCE[name]
  for platform in PLATFORMS:
    find = lambda platform=platform: mixer_kernels.kernels_and_largest(
      name, fields, platform
    )
    if platform in platforms:
      with pytest.raises(ValueError, match=reason):
        find()
    else:
      assert find()[0]


# Mosaic and Triton take seconds for the kernels of each.
@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(
  ("chip", "names"),
  [
    ("v5e", ["full, affine", "full, gate added"]),
    ("h100", ["full, affine", "full, LSSAR", "full, gate added"]),
  ],
)
def test_compiles_without_the_memory_of_scores(chip, names):
  pytest.importorskip("libtpu" if chip == "v5e" else "jax_plugins.xla_cuda13")
  result = subprocess.run(
    [sys.executable, "-m", "tests.models.mixer_kernels", chip, *names],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  lines = [json.loads(line) for line in result.stdout.splitlines()]
  assert [line["case"] for line in lines] == names
  for line in lines:
    assert line["temp_bytes"] < line["score_bytes"], line
