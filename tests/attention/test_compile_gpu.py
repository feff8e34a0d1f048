"""Every GPU kernel compiles for A100 and H100 and needs little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Temporary bytes for each byte of argument. What is above a few percent: sums
# over chunks of windows, gradients of shared keys head by head, channels of
# factors beside those of queries and keys, the float32 sums of causal linear
# attention and its memory before each chunk.
TEMPORARY = {
  "window 12 x 12": 0.5,
  "window float32": 0.4,
  "flash sliding, shared keys, soft cap": 1.7,
  "flash factored bias": 1.1,
  # Keys and values of all levels and their gradients: for each of four arrays,
  # 15/8 and 5/2 of it.
  "flash pyramid, blocks of 128": 2.5,
  "flash pyramid, blocks of 32": 3.7,
  "halo": 0.1,
  # Its tokens are no multiple of a tile.
  "flash sparse, FreeSwim": 1.4,
  "linear causal": 1.7,
  "flash float32": 1.6,
}
WINDOW = {"forward", "backward"}
FLASH = {"forward", "backward_queries", "backward_keys"}
LINEAR = {
  *("make", "make_backward", "read"),
  *("read_backward_queries", "read_backward_memory"),
}
KERNELS = {
  "window 12 x 12": WINDOW | {"bias_gradient"},
  "flash dense bias": FLASH | {"backward_bias"},
  "flash decode": {"forward"},
  "flash decode, 80 channels, odd length": {"forward"},
  "flash sparse, radial": {"forward"},
  "flash sparse, Scale-DiT": {"forward"},
  "flash sparse, FreeSwim": {"forward"},
  "linear": LINEAR,
  "linear LINA": LINEAR,
  "linear causal": {
    f"{kernel}_{order}"
    for kernel in ("memory", "read")
    for order in ("before", "after")
  },
}


# A kernel that is wrong for its GPU may end the process. Triton takes a second
# or more for each of some fifty kernels.
@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("chip", ["a100", "h100"])
def test_compiles_with_little_memory(chip):
  pytest.importorskip("jax_plugins.xla_cuda13")
  result = subprocess.run(
    [sys.executable, "-m", "tests.attention.gpu_kernels", chip],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  rows = [json.loads(line) for line in result.stdout.splitlines()]
  assert len(rows) == {"a100": 9, "h100": 24}[chip]
  for row in rows:
    case = row["case"]
    kernels = {name.split("_attention_")[1] for name in row["kernels"]}
    # Flash and halo attention have the same three.
    family = WINDOW if case.startswith("window") else FLASH
    assert kernels == KERNELS.get(case, family), case
    share = row["temp_bytes"] / row["argument_bytes"]
    assert share < TEMPORARY.get(case, 0.05), f"{case}: {share}"
