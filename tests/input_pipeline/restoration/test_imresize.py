"""MATLAB's imresize: the public test sets bit by bit, and what a kernel is."""

import pathlib

import numpy as np
import pytest

from input_pipeline import restoration
from input_pipeline.images import decode

SETS = pathlib.Path(__file__).parents[4] / "shared/data/super_resolution"


def _load(file):
  return decode.decode_image(file.read_bytes())


@pytest.mark.parametrize("name", ["Set5", "Set14"])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_public_test_sets(name, scale):
  folder = SETS / name / f"x{scale}"
  if not folder.is_dir():
    pytest.skip(f"{folder} is not there")
  files = sorted(folder.glob("*_HR.png"))
  # Of the larger set those of odd sides, grey and few colours.
  for file in files if name == "Set5" else files[4:9:2]:
    made = restoration.imresize(_load(file), 1 / scale)
    there = _load(file.with_name(file.name.replace("_HR", "_LR")))
    np.testing.assert_array_equal(made, there, err_msg=file.name)


def _restated(line, scale):
  """One output after another, in the words of Keys' paper."""
  outputs = []
  for out in range(int(np.ceil(len(line) * scale))):
    at, total, weight = (out + 0.5) / scale - 0.5, 0.0, 0.0
    stretch = max(1.0, 1 / scale)
    for tap in range(-20 * int(stretch), len(line) + 20 * int(stretch)):
      d = abs(at - tap) / stretch
      if d < 1:
        w = 1.5 * d**3 - 2.5 * d**2 + 1
      elif d < 2:
        w = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
      else:
        continue
      total += w * line[min(max(tap, 0), len(line) - 1)]
      weight += w
    outputs.append(total / weight)
  return np.array(outputs)


@pytest.mark.parametrize("scale", [1 / 3, 0.4, 0.75, 1, 1.5, 3])
def test_a_restatement(scale):
  image = np.random.default_rng(0).random((11, 8))
  made = restoration.imresize(image, scale)
  rows = np.stack([_restated(column, scale) for column in image.T], 1)
  wanted = np.stack([_restated(row, scale) for row in rows])
  assert made.shape == wanted.shape
  np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-12)


def test_types_and_what_it_must_do():
  image = np.random.default_rng(0).integers(0, 256, (9, 6, 3), np.uint8)
  np.testing.assert_array_equal(restoration.imresize(image, 1), image)
  assert restoration.imresize(image.astype(np.float32), 0.5).dtype == np.float32
  # A ramp stays one where no edge is near, in both directions.
  ramp = np.tile(np.arange(64.0), (4, 1))
  for scale, inner in ((0.25, slice(3, -3)), (4, slice(9, -9))):
    made = restoration.imresize(ramp, scale)[0]
    wanted = (np.arange(len(made)) + 0.5) / scale - 0.5
    np.testing.assert_allclose(made[inner], wanted[inner], atol=1e-12)
  for bad, scale, match in (
    (image.astype(np.int32), 0.5, "int32"),
    (image[0, 0], 0.5, r"\[3\]"),
    (image[:0], 0.5, "not empty"),
    (image, 0, "scale is 0"),
    (image, float("nan"), "scale is nan"),
  ):
    with pytest.raises(ValueError, match=match):
      restoration.imresize(bad, scale)
