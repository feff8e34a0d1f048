"""Runs that are killed again and again, and compared when they end."""

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.soaking import jobs, processes

# The order in which kinds of runs follow each other: name and processes.
_KINDS = (
  ("language", 1),
  ("language", 1),
  ("language", 2),
  ("classification", 1),
  ("classification", 2),
  ("language", 1),
  ("classification", 1),
)
_KILLS_A_RUN = 12
# Seconds after a phase has begun within which it is killed, and how often it is
# the aim. The writing of checkpoints goes on while the next steps are made.
_AIMS = {
  "starting": (1.5, 2),
  "restoring": (0.25, 3),
  "compiling": (2.0, 2),
  "steps": (0.4, 2),
  "evaluating": (0.3, 3),
  "saving": (0.12, 4),
  "sampling": (1.0, 2),
}
_LONGEST = 600.0


class Soak:
  """The kills of one worker in a folder that several may share."""

  def __init__(self, out: Path, seed: int, worker: int = 0, workers: int = 1):
    """Opens it, and makes the undisturbed runs as they are needed.

    Args:
      out: the folder.
      seed: of the choices of what is killed and when.
      worker: which of the workers this is.
      workers: how many there are; each does every so many-th run.
    """
    self._out, self._seed = out, seed
    self._worker, self._workers = worker, workers
    self._lines = out / f"soak_{worker}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    self._cache = out / f"cache_{worker}"
    self._digests: dict[jobs.Job, dict[str, str]] = {}

  def _read(self) -> list[dict[str, Any]]:
    return read_lines(self._lines)

  def _write(self, line: dict[str, Any]) -> None:
    with self._lines.open("a") as file:
      file.write(json.dumps(line) + "\n")

  def go_on(self, kills: int) -> None:
    """Runs and kills until all workers together have made so many kills.

    Raises:
      RuntimeError: if a run could not be started, or did not end.
    """
    while not self.is_done(kills):
      self._run(self._next_run(), kills)

  def is_done(self, kills: int) -> bool:
    """Whether there are so many kills, and no run of this worker is open."""
    run = self._next_run()
    begun = any(line["run"] == run for line in self._read())
    return self._count() >= kills and not begun

  def _next_run(self) -> int:
    ended = sum("same_state" in line for line in self._read())
    return self._worker + self._workers * ended

  def _count(self) -> int:
    """The kills of all workers."""
    lines = read_lines(*self._out.glob("soak_*.jsonl"))
    return sum("phase" in line for line in lines)

  def _run(self, run: int, kills: int) -> None:
    name, count = _KINDS[run % len(_KINDS)]
    job = jobs.Job(name, count, self._out)
    expected = self._expected(job)
    workdir, log = self._out / f"run_{run}", self._out / f"run_{run}.log"
    of_run = sum(x["run"] == run and "phase" in x for x in self._read())
    while of_run < _KILLS_A_RUN and self._count() < kills:
      rng = random.Random(f"{self._seed}/{run}/{of_run}")
      aim = _choose(rng, job, jobs.checkpoints(workdir))
      line = self._start(job, workdir, log, aim, rng)
      if line is None:
        break
      of_run += 1
      self._write({"run": run, "kill": of_run} | line)
    # After a last start that was too quick to be killed, it changes nothing.
    self._end(job, workdir, log)
    result = self._digest(workdir, log)
    same = {f"same_{name}": result[name] == expected[name] for name in result}
    line = {"run": run, "job": name, "processes": count, "kills": of_run}
    line |= same | {"damaged": _damaged(workdir)}
    self._write(line)
    print(line, flush=True)
    if all(same.values()):
      shutil.rmtree(workdir)

  def _start(
    self, job: jobs.Job, workdir: Path, log: Path, aim: str, rng: random.Random
  ) -> dict[str, Any] | None:
    """Starts a run, or samples of it, and kills that.

    Returns:
      What was killed; None if it came to its end before.
    """
    committed = jobs.checkpoints(workdir)
    printed = log.stat().st_size if log.exists() else 0
    arguments, before = job.command(workdir), None
    cache = self._cache
    # At its end a run shows samples itself.
    if aim == "sampling" and jobs.STEPS not in committed:
      arguments, before = job.sample_command(workdir), jobs.files(workdir)
    elif aim == "compiling":
      # Where nothing is compiled yet.
      cache = self._out / f"cold_cache_{self._worker}"
      shutil.rmtree(cache, ignore_errors=True)
    arguments.append(f"--compilation_cache={cache}")
    count = 1 if before else job.processes
    with processes.started(arguments, log, count) as programs:
      _await(programs, aim, 1 + rng.randrange(3))
      time.sleep(rng.uniform(0, _AIMS[aim][0]))
      victim = rng.randrange(count)
      programs[victim].read(0)
      if any(program.poll() is not None for program in programs):
        _check_codes(programs, log)
        return None
      writing = jobs.is_writing(workdir)
      programs[victim].kill()
      # The other one has to notice.
      others = [p.wait(1.0) for i, p in enumerate(programs) if i != victim]
      killed = {
        "job": job.name,
        "processes": job.processes,
        "aim": aim,
        "phase": programs[victim].phase,
        "victim": victim,
        "others_ended": [code is not None for code in others],
      }
    return (
      killed
      | _what_is_left(workdir, killed["phase"], writing, committed)
      | _how_it_went_on(log, printed, committed)
      | ({"left_alone": jobs.files(workdir) == before} if before else {})
    )

  def _end(self, job: jobs.Job, workdir: Path, log: Path) -> None:
    """Lets a run come to its end."""
    command = [*job.command(workdir), f"--compilation_cache={self._cache}"]
    with processes.started(command, log, job.processes) as programs:
      _check_codes(programs, log)

  def _expected(self, job: jobs.Job) -> dict[str, str]:
    """What the undisturbed run is; it is made by a plain interpreter."""
    if job not in self._digests:
      workdir = self._out / f"{job.name}_{job.processes}_{self._worker}"
      log = Path(f"{workdir}.log")
      command = [*job.command(workdir), f"--compilation_cache={self._cache}"]
      if job.processes > 1:
        self._end(job, workdir, log)
      elif jobs.run_plainly(command, log):
        raise RuntimeError(f"The undisturbed run failed; see {log}.")
      self._digests[job] = self._digest(workdir, log)
    return self._digests[job]

  def _digest(self, workdir: Path, log: Path) -> dict[str, str]:
    output = Path(f"{log}.digest")
    output.unlink(missing_ok=True)
    module = str(Path(jobs.__file__))
    with processes.started([module, str(workdir)], output) as programs:
      _check_codes(programs, output)
    return json.loads(output.read_text().splitlines()[-1])


def began_with(out: Path, workers: int) -> bool:
  """Whether the runs of a folder are those of so many workers, if any are."""
  return all(
    path.name == f"soak_{line['run'] % workers}.jsonl"
    for path in out.glob("soak_*.jsonl")
    for line in read_lines(path)
  )


def read_lines(*paths: Path) -> list[dict[str, Any]]:
  """All lines of such files as are there."""
  return [
    json.loads(line)
    for path in paths
    if path.exists()
    for line in path.read_text().splitlines()
  ]


def _choose(rng: random.Random, job: jobs.Job, committed: Sequence[int]) -> str:
  weights = {name: often for name, (_, often) in _AIMS.items()}
  if not committed:
    del weights["restoring"]
  # Of pictures the end of a run only.
  if job.name != "language" or not committed:
    weights["sampling"] = int(jobs.STEPS in committed)
  return rng.choices(list(weights), list(weights.values()))[0]


def _await(programs: Sequence[processes.Program], aim: str, times: int) -> None:
  """Waits until process 0 comes to a phase so often, or an end."""
  end = time.monotonic() + _LONGEST
  if aim in ("starting", "restoring", "compiling", "sampling"):
    times = 1
  if aim == "starting":
    return
  while time.monotonic() < end:
    times -= programs[0].read(0.05).count(aim)
    if times <= 0 or any(p.poll() is not None for p in programs):
      return
  raise RuntimeError("A start neither ends nor comes to its next phase.")


def _check_codes(programs: Sequence[processes.Program], log: Path) -> None:
  """Waits for all to end; raises RuntimeError unless all end well."""
  codes = [program.wait(_LONGEST) for program in programs]
  if codes != [0] * len(codes):
    raise RuntimeError(f"A start ended with {codes}; see {log}.")


def _what_is_left(
  workdir: Path, phase: str, writing: bool, committed: Sequence[int]
) -> dict[str, Any]:
  left = jobs.checkpoints(workdir)
  step, last = jobs.last_step(workdir), left[-1] if left else 0
  # Before that, what is there is of the start before.
  trained = phase in ("steps", "evaluating", "saving")
  writing = writing and trained
  return {
    "phase": "saving" if writing and phase == "steps" else phase,
    "writing": writing,
    "step": step,
    "checkpoint": last,
    "lost_steps": max(step - last, 0) if trained else 0,
    "new_checkpoints": len(set(left) - set(committed)),
  }


def _how_it_went_on(
  log: Path, printed: int, committed: Sequence[int]
) -> dict[str, Any]:
  """Whether a start went on from the newest checkpoint that was whole."""
  with log.open("rb") as file:
    file.seek(printed)
    _, found, rest = file.read().partition(b"going on from step ")
  if not found:
    return {}
  step = int(rest.split()[0])
  return {"resumed": step, "newest": step == committed[-1]}


def _damaged(workdir: Path) -> int:
  return len(list((workdir / "checkpoints").glob("*.damaged")))
