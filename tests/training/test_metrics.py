import io
import json
import math
import resource
import struct
import subprocess
import sys

import pytest

from training import metrics
from training.event_files import event_pb2


def write(workdir, rows, resume_step=0, evaluated=True):
  with metrics.MetricWriter(
    str(workdir), resume_step=resume_step, evaluated=evaluated
  ) as writer:
    for step, row in rows:
      writer.write(step, row)


def test_one_json_object_a_line(tmp_path):
  write(tmp_path, [(1, {"train/loss": 0.5}), (2, {"train/loss": math.nan})])
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 1, "train/loss": 0.5},
    {"step": 2, "train/loss": None},
  ]
  assert list((tmp_path / "tensorboard").glob("events.*"))


def read_events(workdir):
  """The events of all files, by the record format of TensorFlow."""
  for path in sorted((workdir / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack_from("<Q", data)
      assert len(data) >= length + 16
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[length + 16 :]


def test_the_events_hold_the_same_and_where_a_run_went_on(tmp_path):
  write(tmp_path, [(1, {"train/loss": 0.5, "train/accuracy": 0.25})])
  write(tmp_path, [(2, {"train/loss": 0.125})], resume_step=1)
  events = list(read_events(tmp_path))
  assert [e.step for e in events if e.HasField("session_log")] == [1, 2]
  assert [
    (e.step, {v.tag: v.simple_value for v in e.summary.value})
    for e in events
    if e.HasField("summary")
  ] == [
    (1, {"train/loss": 0.5, "train/accuracy": 0.25}),
    (2, {"train/loss": 0.125}),
  ]


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


@pytest.fixture
def full_disk():
  """No file grows beyond a few hundred bytes, as on a disk that fills up."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_a_clear_error(full_disk, tmp_path):
  rows = [(step, {"train/loss": 0.5}) for step in range(100)]
  with pytest.raises(metrics.MetricsError, match=f"to {tmp_path}: .*too large"):
    write(tmp_path, rows)


def test_closing_on_a_full_disk_does_not_hide_an_error(full_disk, tmp_path):
  def train():
    yield from ((step, {"train/loss": 0.5}) for step in range(6))
    raise KeyError("the cause")

  # Few bytes in metrics.jsonl, more in the events, not yet on the disk.
  with pytest.raises(KeyError, match="the cause"):
    write(tmp_path, train())
  with pytest.raises(OSError, match="too large"):
    (tmp_path / "more").write_bytes(bytes(400))


def test_resuming_on_a_full_disk_loses_no_rows(tmp_path, request):
  rows = [(step, {"train/loss": 0.5}) for step in range(20)]
  write(tmp_path, rows)
  before = metrics.read_metrics(str(tmp_path))
  request.getfixturevalue("full_disk")
  with pytest.raises(metrics.MetricsError):
    write(tmp_path, [], resume_step=20)
  assert metrics.read_metrics(str(tmp_path)) == before


def make_line(total_steps=10, **options):
  return metrics.ProgressLine(
    total_steps,
    8,
    unit="image",
    shown={"loss": ".4f", "accuracy": ".1%"},
    **options,
  )


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_progress_line_is_updated_in_place(monkeypatch):
  screen = Terminal()
  monkeypatch.setattr("sys.stdout", screen)
  clock = iter([0.0, 1.0, 2.0, 3.0])
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
  line = make_line()
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


def test_the_rate_leaves_out_what_is_no_training(monkeypatch):
  now = 0.0
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
  line = make_line()
  row = {"train/loss": 1.5, "train/accuracy": 0.25}
  # Before the first step there is no clock that could stop.
  line.pause()
  now = 5.0
  line.resume()
  rates = []
  for step in range(1, 5):
    now += 2.0
    rates.append(line.update(step, row))
    line.pause()
    now += 100.0
    # A second call, as at the end of a run, does not start the pause anew.
    line.pause()
    now += 100.0
    line.resume()
  assert rates == [0, 4, 4, 4]


def test_a_log_file_gets_few_lines(capsys):
  line = make_line(50, interval=1e9)
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


def test_a_run_does_not_wait_for_pytorch():
  """Which tensorboardX imports where it is installed."""
  pytest.importorskip("torch")
  code = "import sys, training.metrics; sys.exit('torch' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)
