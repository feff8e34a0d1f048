"""The figures of a soak."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- begin: soak -->", "<!-- end: soak -->"
_PHASES = {
  "starting": "start-up",
  "restoring": "restore",
  "compiling": "compile",
  "steps": "step",
  "evaluating": "evaluation",
  "saving": "save",
  "sampling": "sampling",
}


def kills(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The lines of kills."""
  return [line for line in lines if "phase" in line]


def finished(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The lines of runs that came to their end."""
  return [line for line in lines if "same_state" in line]


def differing(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The lines that tell of anything that should not be."""
  wrong = [
    line
    for line in finished(lines)
    if not (line["same_state"] and line["same_metrics"]) or line["damaged"]
  ]
  return wrong + [
    line
    for line in kills(lines)
    if not line.get("newest", True) or not line.get("left_alone", True)
  ]


def table(lines: Sequence[Mapping[str, Any]]) -> str:
  """Kills by phase and kind of run, and what came of them, as Markdown."""
  killed = kills(lines)
  kinds = sorted({(line["job"], line["processes"]) for line in killed})
  head = [f"{job} x {count}" for job, count in kinds]
  rows = [["killed in", *head, "all"], ["---"] * (len(kinds) + 2)]
  counted = collections.Counter(
    (phase, kind)
    for line in killed
    for phase in (line["phase"], "all")
    for kind in ((line["job"], line["processes"]), "all")
  )
  for phase, name in (_PHASES | {"all": "all"}).items():
    counts = [counted[phase, kind] for kind in (*kinds, "all")]
    rows.append([name, *map(str, counts)])
  text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
  figures = "\n".join(f"| {n} | {value} |" for n, value in _figures(lines))
  return f"{text}\n\n| | |\n|---|---|\n{figures}\n"


def _figures(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
  killed, runs = kills(lines), finished(lines)
  resumed = [line for line in killed if "resumed" in line]
  sampled = [line for line in killed if "left_alone" in line]
  lost = [line["lost_steps"] for line in killed]
  return [
    ("kills", len(killed)),
    ("while a checkpoint was written", sum(x["writing"] for x in killed)),
    ("starts that went on from a checkpoint and were killed", len(resumed)),
    (
      "of these not from the newest that was whole",
      sum(not line["newest"] for line in resumed),
    ),
    ("steps lost and done again", sum(lost)),
    ("most steps lost by one kill", max(lost, default=0)),
    ("checkpoints put aside as damaged", sum(x["damaged"] for x in runs)),
    (
      "`sample.py` killed, and files of the run that changed",
      f"{len(sampled)}, {sum(not x['left_alone'] for x in sampled)}",
    ),
    ("runs that came to their end", len(runs)),
    ("with differing arrays", sum(not x["same_state"] for x in runs)),
    ("with differing metrics", sum(not x["same_metrics"] for x in runs)),
  ]


def write(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
  """Replaces the figures between the two marks of a document."""
  text = path.read_text()
  before, _, rest = text.partition(BEGIN)
  _, _, after = rest.partition(END)
  path.write_text(f"{before}{BEGIN}\n{table(lines)}{END}{after}")
