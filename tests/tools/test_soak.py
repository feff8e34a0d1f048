"""The tool that kills runs, on a few of them."""

import json
import os
import subprocess
import sys

import pytest

from tests import compiler_flags
from tools.soaking import jobs, kills, report

KILL = {
  "kill": 1,
  "run": 0,
  "job": "language",
  "processes": 2,
  "phase": "steps",
  "writing": True,
  "lost_steps": 3,
  "resumed": 4,
  "newest": True,
}
END = {
  "run": 0,
  "job": "language",
  "processes": 2,
  "same_state": True,
  "same_metrics": True,
  "damaged": 0,
}


def rows(table):
  return [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in table.splitlines()
    if line.startswith("|")
  ]


def test_the_table_counts_kills_by_phase_and_kind():
  lines = [
    KILL,
    KILL | {"job": "classification", "processes": 1, "lost_steps": 5},
    KILL | {"phase": "saving", "writing": False},
    KILL | {"phase": "sampling", "left_alone": True, "lost_steps": 0},
    END,
  ]
  found = {row[0]: row[1:] for row in rows(report.table(lines))}
  assert found["killed in"] == ["classification x 1", "language x 2", "all"]
  assert found["step"] == ["1", "1", "2"]
  assert found["save"] == ["0", "1", "1"]
  assert found["all"] == ["1", "3", "4"]
  assert found["steps lost and done again"] == ["11"]
  assert found["most steps lost by one kill"] == ["5"]
  assert found["with differing arrays"] == ["0"]
  assert not report.differing(lines)


@pytest.mark.parametrize(
  "wrong",
  [
    END | {"same_state": False},
    END | {"same_metrics": False},
    END | {"damaged": 1},
    KILL | {"newest": False},
    KILL | {"left_alone": False},
  ],
)
def test_what_should_not_be_is_found(wrong):
  assert report.differing([KILL, wrong, END]) == [wrong]


def test_the_figures_of_a_document_are_replaced(tmp_path):
  path = tmp_path / "reliability.md"
  path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
  report.write([KILL, END], path)
  text = path.read_text()
  assert text.startswith("before\n")
  assert text.endswith(f"{report.END}\nafter\n")
  assert "old" not in text
  assert "| kills | 1 |" in text


def test_a_document_says_what_the_soak_found():
  text = (jobs.ROOT / "docs" / "reliability.md").read_text()
  found = {row[0]: row[1:] for row in rows(text)}
  assert int(found["kills"][0]) > 0
  assert found["with differing arrays"] == ["0"]
  assert found["with differing metrics"] == ["0"]
  kinds = len(found["killed in"])
  assert all(len(found[name]) == kinds for name in ("step", "save", "all"))


def test_what_a_start_went_on_from_is_read(tmp_path):
  log = tmp_path / "log"
  log.write_text("going on from step 4 of 48\nkilled\n")
  printed = log.stat().st_size
  log.write_text(log.read_text() + "going on from step 8 of 48\n")
  assert kills._how_it_went_on(log, printed, [4, 8]) == {
    "resumed": 8,
    "newest": True,
  }
  assert kills._how_it_went_on(log, printed, [8, 12])["newest"] is False
  assert kills._how_it_went_on(log, log.stat().st_size, [4]) == {}


def test_as_many_workers_go_on_as_began(tmp_path):
  assert kills.began_with(tmp_path, 3)
  for worker, runs in enumerate([(0, 2), (1, 3)]):
    lines = [json.dumps(KILL | {"run": run}) + "\n" for run in runs]
    (tmp_path / f"soak_{worker}.jsonl").write_text("".join(lines))
  assert [kills.began_with(tmp_path, n) for n in (1, 2, 3)] == [
    *(False, True, False)
  ]


@pytest.mark.kill
def test_a_few_kills_and_going_on(tmp_path):
  command = [sys.executable, "-m", "tools.soak", f"--out={tmp_path}/out"]
  environment = os.environ | {"XLA_FLAGS": compiler_flags.QUICK}

  def run(kills, *more):
    return subprocess.run(
      [*command, f"--kills={kills}", *more],
      cwd=jobs.ROOT,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )

  ended = run(2)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  path = tmp_path / "out" / "soak_0.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line["kill"] for line in lines[:-1]] == [1, 2]
  assert lines[-1]["same_state"]
  assert lines[-1]["same_metrics"]
  # Nothing is left to do.
  again = run(2)
  assert again.stdout.splitlines()[0].startswith("| killed in")
  assert path.read_text().count("\n") == 3
  assert "--workers=0" in run(2, "--workers=0").stderr
