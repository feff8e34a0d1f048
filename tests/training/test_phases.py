import threading

import pytest

from training import phases


@pytest.fixture
def clock(monkeypatch):
  """The time in seconds, to be changed."""
  now = [100.0]
  monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])
  return now


def run(clock, saved, passed):
  """A start that takes 2 s to begin, 3 to compile and 5 for steps."""
  timing = phases.Phases()
  clock[0] += 2
  timing.go_on(saved, passed)
  with timing.during("compiling"):
    clock[0] += 3
  timing.enter(phases.STEPS)
  clock[0] += 4
  with timing.during("saving"):
    clock[0] += 10
  clock[0] += 1
  return timing


def test_each_second_is_of_one_phase(clock):
  timing = run(clock, {}, 0.0)
  expected = {"starting": 2, "compiling": 3, "steps": 5, "saving": 10}
  assert timing.seconds() == expected | {"lost": 0}
  assert timing.goodput() == 0.25
  assert timing.of_this_start() == 20


def test_what_came_after_the_checkpoint_is_lost(clock):
  saved = run(clock, {}, 0.0).seconds()
  # The first start was killed 12 seconds after its checkpoint.
  timing = run(clock, saved, 20 + 12)
  assert timing.seconds()["lost"] == 12
  assert timing.seconds()["steps"] == 10
  assert timing.goodput() == 10 / 52
  # The second one was killed as well, and was not saved at all.
  timing = run(clock, saved, 20 + 12 + 20)
  assert timing.seconds()["lost"] == 32
  assert timing.goodput() == 10 / 72
  assert timing.of_this_start() == 20


def test_seconds_that_nobody_recorded_are_not_negative(clock):
  saved = run(clock, {}, 0.0).seconds()
  assert run(clock, saved, 0.0).seconds()["lost"] == 0


def test_the_last_line_has_what_took_a_percent(clock):
  timing = run(clock, {"evaluating": 0.1}, 80.1)
  assert timing.describe() == (
    "1 min 40 s, of all starts together: 80% lost, 10% saving, 5% steps, "
    "3% compiling, 2% starting"
  )


def beat(timing, clock, seconds, action=lambda: None):
  """Has a heartbeat beat at these times, without waiting for them."""
  heart = phases.Heartbeat(timing, action, every=3600)
  heart._stop.set()
  heart._thread.join()
  for now in seconds:
    clock[0] = now
    heart.tick()


def test_a_line_a_minute_while_nothing_else_is_said(clock, capsys):
  timing = phases.Phases()
  timing.enter("compiling")
  beat(timing, clock, range(110, 300, 10))
  said = [
    line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()
  ]
  assert said == [
    "alive: compiling for 1 min 00 s",
    "alive: compiling for 2 min 00 s",
    "alive: compiling for 3 min 00 s",
  ]


def test_steps_are_signs_of_life(clock, capsys):
  timing = phases.Phases()
  timing.enter(phases.STEPS)
  beat(timing, clock, range(110, 160, 10))
  clock[0] = 155.0
  timing.step_done()
  beat(timing, clock, range(160, 210, 10))
  assert not capsys.readouterr().out
  beat(timing, clock, range(210, 230, 10))
  assert "alive: no step has ended for 1 min 05 s" in capsys.readouterr().out


def test_a_beat_that_fails_is_said_once(clock, caplog):
  def fail():
    raise OSError(28, "No space left on device")

  beat(phases.Phases(), clock, range(110, 200, 10), fail)
  (record,) = caplog.records
  assert "The time of this start cannot be kept" in record.getMessage()
  assert "No space left" in record.getMessage()


def test_the_thread_beats_and_ends():
  beaten = threading.Event()
  heart = phases.Heartbeat(phases.Phases(), beaten.set, every=0.01)
  assert beaten.wait(10)
  beaten.clear()
  heart.close()
  # Once more, so that the last seconds count.
  assert beaten.is_set()
  assert not heart._thread.is_alive()
