"""Training steps on paper: what is counted, and what a row has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from benchmarks import step_cases
from tools import kernel_cycles


def doubled(x):
  def kernel(x_ref, out_ref):
    out_ref[...] = 2 * x_ref[...]

  block = pl.BlockSpec((8, 128), lambda i: (i, 0))
  return pl.pallas_call(
    kernel,
    name="doubled",
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    grid=(4,),
    in_specs=[block],
    out_specs=block,
    compiler_params=pltpu.CompilerParams(),
    cost_estimate=pl.CostEstimate(
      flops=x.size, bytes_accessed=8 * x.size, transcendentals=0
    ),
  )(x)


def test_kernels_count_as_often_as_the_loops_around_them_turn():
  def function(x):
    def body(x, _):
      return doubled(doubled(x)), None

    x, _ = jax.lax.scan(body, x, length=3)
    return doubled(x)

  x = jax.ShapeDtypeStruct((32, 128), jnp.float32)
  calls = list(kernel_cycles.calls(jax.make_jaxpr(function)(x).jaxpr))
  assert [call.count for call in calls] == [3, 3, 1]
  # The same kernel wherever it stands, to be compiled once.
  assert len({call.key for call in calls}) == 1
  assert calls[0].name == "doubled"
  # Four blocks of 8 x 128 numbers are read, and as many written.
  assert calls[0].fetched == calls[0].bytes == 2 * 32 * 128 * 4


@pytest.mark.compile
def test_useful_operations_are_three_times_the_published():
  pytest.importorskip("libtpu")
  # Its recipe mixes images by random numbers from loops of unknown length.
  case = step_cases.Case("maxvit:tiny_224", 2)
  published = 5.6e9
  assert step_cases.useful_flops(case) == pytest.approx(
    2 * 3 * 2 * published, rel=0.02
  )


@pytest.mark.compile
@pytest.mark.slow
def test_a_row_compares_a_step_with_its_reference(tmp_path):
  pytest.importorskip("libtpu")
  # In a process of its own: libtpu reads where to dump when it is loaded.
  command = [sys.executable, "-m", "benchmarks.steps_static", "--json"]
  command += ["--config=language:test", "--batch=8", "--ranking=3"]
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
  assert (row["config"], row["chip"], row["pass"]) == (
    "language:test",
    "v5e",
    "train",
  )
  ours, reference = row["ours"], row["reference"]
  assert row["ratio_reference"] == reference["ms"] / ours["ms"]
  assert row["bytes_ratio"] == reference["bytes"] / ours["bytes"]
  # Two layers of attention forward and backward, and none in the reference.
  assert 0 < ours["kernels_ms"] < ours["ms"]
  assert reference["kernels_ms"] == 0
  assert 0 < row["mfu"] == ours["mfu"] < 0.01
  # 6 operations for each parameter and token: of a layer 4 x 32 x 32 and 3 x
  # 128 x 32, of the head 257 x 32; and of scores 12 for each channel and key.
  matrices = 2 * (4 * 32 * 32 + 3 * 128 * 32) + 257 * 32
  assert row["useful_flops"] == 8 * 32 * (6 * matrices + 2 * 12 * 32 * 32)
  assert len(ours["dearest"]) == 3
