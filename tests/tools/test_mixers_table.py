"""The table of mixers: against formulas, and against what the page shows."""

import pathlib

import pytest

from tools import mixers_table

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "mixers.md"
WIDTH = 1024


# Traces every mixer four times.
@pytest.mark.slow
def test_the_page_shows_what_the_code_says():
  """All columns that are not measured."""
  lines = PAGE.read_text().splitlines()
  shown = [
    [cell.strip() for cell in line.strip("| ").split("|")]
    for line in lines
    if line.startswith("| ")
  ][2:]
  cells = [mixers_table.static(row) for row in mixers_table.ROWS]
  assert [row[: len(cells[0])] for row in shown] == cells


@pytest.mark.parametrize(
  ("row", "keys"),
  [
    ("full", lambda n: (n + 1) / 2),
    # The first 1,024 tokens see half as many on average.
    ("sliding", lambda n: 1024 - 1024 * 1023 / 2 / n),
  ],
)
def test_multiply_adds_are_projections_and_keys_that_are_seen(row, keys):
  counted = mixers_table.multiply_adds(row)
  for length in (1024, 8192, 65536):
    expected = 4 * WIDTH**2 + 2 * WIDTH * keys(length)
    assert counted[length] == pytest.approx(expected, rel=1e-6)


def test_multiply_adds_of_a_mean_and_of_a_memory():
  gated = mixers_table.multiply_adds("gated")
  full = mixers_table.multiply_adds("full")
  assert gated[8192] - full[8192] == pytest.approx(WIDTH**2)
  linear = mixers_table.multiply_adds("linear, elu")
  assert linear[1024] == linear[65536]


@pytest.mark.parametrize(
  ("row", "slots"),
  [("full", lambda n: n), ("sliding", lambda n: min(n, 1024))],
)
def test_bytes_are_keys_values_and_their_places(row, slots):
  for length in (1024, 8192):
    # Two bytes a number, and an index for all.
    size = slots(length) * (2 * WIDTH * 2 + 2 * 4) + 4
    assert mixers_table.cache_bytes(row, length) == size / length


def test_measured_cells_are_of_the_studies_that_have_them():
  lines = [
    {"study": "mixers", "row": "full", "loss": 1.0},
    {"study": "mixers", "row": "full", "loss": 2.0},
    {"study": "based", "row": "softmax", "accuracy": 0.5},
    {
      "study": "softplus_attention",
      "row": "softmax",
      "loss_1": 1.0,
      "loss_16": 1.5,
    },
  ]
  assert mixers_table.measured("full", lines) == [
    "1.500 ± 0.707",
    "0.500",
    "0.500",
  ]
  assert mixers_table.measured("gated", lines) == ["", "", ""]
