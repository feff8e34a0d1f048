"""Masks at the papers' sizes: what kernels find of them, and that they fit."""

import functools

import pytest

from benchmarks import sparse_cases


@pytest.mark.parametrize(
  ("name", "platform", "sides", "seen"),
  [
    ("69k radial, decay 0.2", "gpu", (128, 128), 83_728),
    ("115k radial, decay 0.95", "gpu", (128, 128), 222_452),
    # By Hilbert's curve 15,092, of which 4 rows of 1,032 are the text's.
    ("70k Scale-DiT", "gpu", (128, 64), 15_092 - 4 * 1_032),
    ("70k dense", "tpu", (512, 512), 136 * 137),
    # A row has 14, 8, 0 and 29 of 148 blocks at the levels 1, 2, 4 and 8,
    ("75k PSA, density 0.15", "gpu", (128, 64), 592 * (14 * 8 + 8 * 4 + 29)),
    # in the paper's size 59, 30, 0 and 118 of 592,
    (
      "75k PSA, density 0.15, blocks of 128",
      "gpu",
      (128, 16),
      592 * (59 * 8 + 29 * 4 + 119),
    ),
    # and half as large, 118, 59, 0 and 237 of 1,184, of 4, 2, 1 and 1 tiles,
    (
      "75k PSA, density 0.15, blocks of 64",
      "gpu",
      (128, 16),
      592 * (118 * 4 + 59 * 2 + 237),
    ),
    # or a quarter, 236, 119, 0 and 473 of 2,368, of 2, 1, 1 and 1.
    (
      "75k PSA, density 0.15, blocks of 32",
      "gpu",
      (128, 16),
      592 * (236 * 2 + 119 + 473),
    ),
    (
      "75k PSA, density 0.15, tiles of 128",
      "tpu",
      (128, 128),
      592 * (59 + 29 + 119),
    ),
    # or 7, 4, 0 and 14 of 74.
    ("75k PSA, density 0.15", "tpu", (512, 128), 148 * (7 * 8 + 4 * 4 + 14)),
  ],
)
def test_tiles(name, platform, sides, seen):
  counted = sparse_cases.tiles(name, platform)
  assert (counted.sides, counted.seen) == (sides, seen)
  assert 0.8 < counted.busy <= 1


def test_bytes_of_a_pyramid_grow_with_its_density():
  names = ("75k PSA, density 0.15", "75k PSA, density 0.3", "75k dense")
  for platform in ("tpu", "gpu"):
    moved = [sparse_cases.least_bytes(name, platform) for name in names]
    shares = [some / moved[-1] for some in moved]
    assert shares == pytest.approx([0.15, 0.3, 1.0], abs=0.02)


def test_bytes_grow_with_the_density():
  names = ("69k radial, decay 0.2", "69k radial, decay 1", "69k dense")
  for platform in ("tpu", "gpu"):
    moved = [sparse_cases.least_bytes(name, platform) for name in names]
    share = [sparse_cases.tiles(name, platform).density for name in names]
    assert moved == sorted(moved)
    for some, density in zip(moved, share, strict=True):
      assert some / moved[-1] == pytest.approx(density, abs=0.01)


# Half a second each of Mosaic's, and tables of megabytes.
@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  [
    "69k radial, decay 0.2",
    "70k Scale-DiT",
    "75k PSA, density 0.3",
    "75k PSA, density 0.15, tiles of 128",
    "171k FreeSwim",
  ],
)
def test_it_fits_a_v5e(name):
  pytest.importorskip("libtpu")
  from tools import compile_only

  function, arguments = sparse_cases.call(name)
  compiled = compile_only.compile_for(
    "v5e", functools.partial(function, "tpu"), *arguments
  )
  memory = compiled.memory_analysis()
  # Copies in the kernel's layout, the numbers of tokens of a window beside
  # them; a matrix of scores would be hundreds of times as much.
  assert memory.temp_size_in_bytes < 3 * memory.argument_size_in_bytes
