"""CPU seconds of every test: a table by file, and a limit on each test.

A plugin of pytest, loaded by conftest.py. Wall time says little on a machine
that does other things, so this counts the time that the process and the
children it has waited for spent on a CPU, over all threads: what XLA compiles
on several of them counts once for each.
"""

import math
import re
import resource
import time
from pathlib import Path

import pytest

# Of a test that is not marked slow: its own seconds, fixtures not counted,
# since the first test that asks for a shared one would pay for all.
LIMIT = 5.0
UNLIMITED = ("slow", "kill")
# The same test takes twice as long where a neighbour has the cache, and the
# first to need a program compiles it for those that follow, so what is over the
# limit is reported, and fails only where no neighbour could explain it: a run
# that fails for another's work says nothing about the code.
TOLERANCE = 4.0
# Of the loop below, on the machine that the budgets were measured on.
LOOP_SECONDS = 0.08

DOCUMENT = Path(__file__).parent.parent / "docs" / "testing.md"
BEGIN, END = "<!-- begin: CPU seconds -->", "<!-- end: CPU seconds -->"
OUTSIDE = "imports and collection"


def cpu_seconds():
  """Returns the CPU seconds of this process and of its finished children."""
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


def slowness():
  """Returns how much slower than the budgets' machine this one is, at least 1.

  A loop of the interpreter stands for it: tracing and compiling are such work,
  and it has no threads, so the number of cores does not matter.
  """
  start = time.process_time()
  total = 0
  for i in range(3_000_000):
    total += i & 7
  return max(1.0, (time.process_time() - start) / LOOP_SECONDS)


def read_budgets(text):
  """Returns {file: seconds} of the table in a document's text."""
  rows = re.findall(r"^\| (tests/\S+) \|[^|]*\| *(\d+) \|$", text, re.MULTILINE)
  return {name: int(seconds) for name, seconds in rows}


def write_table(text, measured):
  """Returns a document's text with its table made anew.

  The budget of a file is its measured seconds and half as much again, rounded
  up to a multiple of five.
  """
  before, _, rest = text.partition(BEGIN)
  _, _, after = rest.partition(END)
  rows = ["| file | measured | budget |", "|---|---:|---:|"]
  for name, seconds in sorted(measured.items(), key=lambda row: -row[1]):
    if name != OUTSIDE:
      budget = 5 * int(-(-1.5 * seconds // 5))
      rows.append(f"| {name} | {seconds:.1f} | {max(budget, 5)} |")
  outside = measured.get(OUTSIDE, 0.0)
  total = sum(measured.values())
  summary = f"In all {total:.0f} CPU seconds, {outside:.0f} of them {OUTSIDE}."
  return "\n".join([before + BEGIN, *rows, "", summary, END]) + after


def pytest_addoption(parser):
  parser.addoption(
    "--write-cpu-table",
    action="store_true",
    help="write the CPU seconds of this run into docs/testing.md",
  )
  parser.addoption(
    "--no-cpu-limit",
    action="store_true",
    help="let a test take any CPU seconds, with versions that compile slower",
  )


def pytest_configure(config):
  config.pluginmanager.register(Meter(config), "cpu_seconds")


class Meter:
  """Measures in each worker, adds up where the reports arrive."""

  def __init__(self, config):
    self.config = config
    self.is_worker = hasattr(config, "workerinput")
    self.allowed = math.inf
    if not config.option.no_cpu_limit:
      self.allowed = LIMIT * TOLERANCE * slowness()
    self.in_tests = 0.0
    self.by_file = {}
    self.over_limit = []

  @pytest.hookimpl(hookwrapper=True, tryfirst=True)
  def pytest_runtest_setup(self, item):
    yield from self._measure(item)

  @pytest.hookimpl(hookwrapper=True, tryfirst=True)
  def pytest_runtest_call(self, item):
    yield from self._measure(item)

  @pytest.hookimpl(hookwrapper=True, tryfirst=True)
  def pytest_runtest_teardown(self, item):
    yield from self._measure(item)

  def _measure(self, item):
    start = cpu_seconds()
    yield
    item.cpu_seconds = cpu_seconds() - start
    self.in_tests += item.cpu_seconds

  @pytest.hookimpl(hookwrapper=True)
  def pytest_runtest_makereport(self, item, call):
    outcome = yield
    report = outcome.get_result()
    # An attribute of a report travels from a worker with the rest of it.
    report.cpu_seconds = getattr(item, "cpu_seconds", 0.0)
    report.slow = any(map(item.get_closest_marker, UNLIMITED))
    if (
      report.when == "call"
      and report.passed
      and not report.slow
      and report.cpu_seconds > self.allowed
    ):
      report.outcome = "failed"
      report.longrepr = (
        f"{report.cpu_seconds:.1f} CPU seconds; a test that is not marked slow "
        f"may take {LIMIT:.0f}, and {self.allowed:.0f} on this machine"
      )

  def pytest_runtest_logreport(self, report):
    # A worker that crashed has not measured what it crashed in.
    if self.is_worker or not hasattr(report, "cpu_seconds"):
      return
    file = report.nodeid.partition("::")[0]
    seconds = self.by_file.get(file, 0.0) + report.cpu_seconds
    self.by_file[file] = seconds
    if report.when == "call" and not report.slow and report.cpu_seconds > LIMIT:
      self.over_limit.append((report.cpu_seconds, report.nodeid))

  @pytest.hookimpl(trylast=True)
  def pytest_collection_modifyitems(self, items):
    """The files that cost most first, so that no core waits at the end.

    With `--dist=loadfile` each goes to one worker whole, in this order, so
    fixtures of a module are made once. What a new file costs is not known, so
    it goes before the others.
    """
    budgets = read_budgets(DOCUMENT.read_text())
    items.sort(key=lambda item: -budgets.get(_file_of(item), math.inf))

  def pytest_sessionfinish(self):
    if self.is_worker:
      outside = cpu_seconds() - self.in_tests
      self.config.workeroutput["outside_tests"] = outside
    elif self.config.getoption("numprocesses", None):
      # Its children are the workers, which count for themselves.
      self._add_outside(time.process_time())
    else:
      self._add_outside(cpu_seconds() - self.in_tests)

  @pytest.hookimpl(optionalhook=True)
  def pytest_testnodedown(self, node, error):
    self._add_outside(getattr(node, "workeroutput", {}).get("outside_tests", 0))

  def _add_outside(self, seconds):
    self.by_file[OUTSIDE] = self.by_file.get(OUTSIDE, 0.0) + seconds

  def pytest_terminal_summary(self, terminalreporter):
    write = terminalreporter.write_line
    budgets = read_budgets(DOCUMENT.read_text())
    terminalreporter.section("CPU seconds by file")
    for name, seconds in sorted(self.by_file.items(), key=lambda x: -x[1]):
      budget = budgets.get(name)
      note = f"  over its budget of {budget}" if over(seconds, budget) else ""
      write(f"{seconds:8.1f}  {name}{note}")
    write(f"{sum(self.by_file.values()):8.1f}  in all")
    for seconds, test in sorted(self.over_limit, reverse=True):
      write(f"over {LIMIT:.0f} and not marked slow: {seconds:.1f}  {test}")
    if self.config.option.write_cpu_table:
      DOCUMENT.write_text(write_table(DOCUMENT.read_text(), self.by_file))
      write(f"wrote the table of {DOCUMENT}")


def over(seconds, budget):
  return budget is not None and seconds > budget


def _file_of(item):
  return item.nodeid.partition("::")[0]
