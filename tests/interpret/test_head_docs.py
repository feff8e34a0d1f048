"""The code of docs/head_attribution.md is run, and is so."""

from pathlib import Path

import pytest

from tools import render_attention

PAGE = Path(__file__).parents[2] / "docs" / "head_attribution.md"


@pytest.mark.slow  # It decodes, and compiles what each section runs.
def test_the_page_runs():
  names = render_attention.run_code(PAGE.read_text())
  assert [len(row) for row in names["said"]] == [4] * 6
  assert {*names["chosen"].nonzero()[0] // 3} == {0, 1}
  assert (names["by_head"] > 0).any(-1).all()
