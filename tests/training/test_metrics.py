import io
import json
import math

import pytest

from training import metrics


def write(workdir, rows, resume_step=0, evaluated=True):
  writer = metrics.MetricWriter(
    str(workdir), resume_step=resume_step, evaluated=evaluated
  )
  for step, row in rows:
    writer.write(step, row)
  writer.close()


def test_one_json_object_a_line(tmp_path):
  write(tmp_path, [(1, {"train/loss": 0.5}), (2, {"train/loss": math.nan})])
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 1, "train/loss": 0.5},
    {"step": 2, "train/loss": None},
  ]
  assert list((tmp_path / "tensorboard").glob("events.*"))


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
  rows = [(s, {"train/loss": float(s)}) for s in (1, 2, 3)]
  write(tmp_path, [*rows, (2, {"eval/loss": 0.1})])
  write(tmp_path, [(3, {"train/loss": 7.0})], resume_step=2)
  assert metrics.read_metrics(str(tmp_path)) == [
    {"step": 1, "train/loss": 1.0},
    {"step": 2, "train/loss": 2.0},
    {"step": 2, "eval/loss": 0.1},
    {"step": 3, "train/loss": 7.0},
  ]


def test_resuming_before_an_evaluation_drops_the_evaluation(tmp_path):
  rows = [(2, {"train/loss": 2.0}), (2, {"eval/loss": 0.1})]
  write(tmp_path, rows)
  write(tmp_path, [], resume_step=2, evaluated=False)
  assert metrics.read_metrics(str(tmp_path)) == [{"step": 2, "train/loss": 2.0}]


def test_a_torn_last_line_is_ignored(tmp_path):
  write(tmp_path, [(1, {"train/loss": 0.5})])
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 2, "tra')
  assert [r["step"] for r in metrics.read_metrics(str(tmp_path))] == [1]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_progress_line_is_updated_in_place(monkeypatch):
  screen = Terminal()
  monkeypatch.setattr("sys.stdout", screen)
  clock = iter([0.0, 1.0, 2.0, 3.0])
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
  line = metrics.ProgressLine(total_steps=10, batch_size=8)
  for step in (1, 2, 3):
    rate = line.update(step, {"train/loss": 1.5, "train/accuracy": 0.25})
  line.pause()
  assert rate == 8
  shown = screen.getvalue()
  assert shown.count("\n") == 1
  assert shown.split("\r")[-1].split("  ") == [
    "step 3/10",
    "loss 1.5000",
    "accuracy 25.0%",
    "8 images/s",
    "7 s left\n",
  ]


def test_a_log_file_gets_few_lines(capsys):
  line = metrics.ProgressLine(total_steps=50, batch_size=8, interval=1e9)
  for step in range(1, 51):
    line.update(step, {"train/loss": 1.5, "train/accuracy": 0.25})
  shown = capsys.readouterr().out.splitlines()
  assert [row.split()[1] for row in shown] == ["50/50"]


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.4, "0 s"),
    (59.6, "1 min 00 s"),
    (185, "3 min 05 s"),
    (7440, "2 h 04 min"),
    (math.nan, "?"),
  ],
)
def test_formats_seconds(seconds, text):
  assert metrics.format_seconds(seconds) == text
