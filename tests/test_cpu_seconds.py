"""The table of CPU seconds, and the limit on a test."""

import types

import pytest

from tests import cpu_seconds

TEXT = f"before\n{cpu_seconds.BEGIN}\nold\n{cpu_seconds.END}\nafter\n"


def test_what_is_written_is_read():
  measured = {"tests/a.py": 20.1, "tests/b.py": 0.0, cpu_seconds.OUTSIDE: 9.0}
  text = cpu_seconds.write_table(TEXT, measured)
  assert cpu_seconds.read_budgets(text) == {"tests/a.py": 35, "tests/b.py": 5}
  assert "In all 29 CPU seconds, 9 of them" in text
  assert "old" not in text
  assert text.startswith("before\n")
  assert text.endswith("\nafter\n")
  assert cpu_seconds.write_table(text, measured) == text


def test_files_of_the_table_exist():
  document = cpu_seconds.DOCUMENT
  text = document.read_text()
  budgets = cpu_seconds.read_budgets(text)
  # What is not read has no budget, and its file goes before all others.
  assert len(budgets) == text.count("\n| tests/")
  for name in budgets:
    assert (document.parent.parent / name).exists(), name


@pytest.mark.parametrize(
  ("seconds", "marks", "no_limit", "outcome"),
  [
    (19.0, (), False, "passed"),
    (21.0, (), False, "failed"),
    (99.0, ("slow",), False, "passed"),
    (99.0, (), True, "passed"),
  ],
)
def test_the_limit(monkeypatch, seconds, marks, no_limit, outcome):
  monkeypatch.setattr(cpu_seconds, "slowness", lambda: 1.0)
  option = types.SimpleNamespace(no_cpu_limit=no_limit)
  meter = cpu_seconds.Meter(types.SimpleNamespace(option=option))
  item = types.SimpleNamespace(
    cpu_seconds=seconds,
    get_closest_marker=lambda name: name if name in marks else None,
  )
  report = types.SimpleNamespace(when="call", passed=True, outcome="passed")
  wrapper = meter.pytest_runtest_makereport(item, None)
  next(wrapper)
  with pytest.raises(StopIteration):
    wrapper.send(types.SimpleNamespace(get_result=lambda: report))
  assert report.outcome == outcome
