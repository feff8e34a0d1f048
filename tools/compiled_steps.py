"""Steps of an experiment, compiled for chips that are not here."""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding

import experiment
from tools import decoding_steps, program_report, topologies
from training import evaluation

# Of what the compiler says where a program does not fit.
_NO_ROOM = "CompileTimeHbmOom"
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}


@dataclasses.dataclass(frozen=True)
class Lowered:
  """A step that is ready for the compiler.

  Attributes:
    program: the step.
    mesh: that it runs on.
    rows: examples of a batch, over all chips.
    argument_bytes: of a chip.
  """

  program: jax.stages.Lowered
  mesh: Mesh
  rows: int
  argument_bytes: int


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What the compiler said of a step.

  Attributes:
    fits: whether the chips have room for it.
    needed_bytes: of a chip: arguments and temporaries; where it does not fit,
      what the compiler says.
    available_bytes: of a chip, None if not known.
    lower_seconds: to trace and lower it.
    compile_seconds: to compile it.
    chips: devices of the mesh.
    kind: of device.
    mesh: axes of more than one device, name and size.
    rows: of a batch, over all chips.
    argument_bytes: of a chip.
    report: what the program needs, None where it does not fit.
  """

  fits: bool
  needed_bytes: int
  available_bytes: int | None
  lower_seconds: float
  compile_seconds: float
  chips: int
  kind: str
  mesh: dict[str, int]
  rows: int
  argument_bytes: int
  report: program_report.Report | None


def compile_step(
  config: ml_collections.ConfigDict,
  devices: Sequence[Any],
  info: Any,
  step: str = "train",
) -> Outcome:
  """Compiles a step of a config.

  Args:
    config: of a run.
    devices: of a topology.
    info: of its data, as `tools.absent_data.info` makes it.
    step: one of STEPS.

  Raises:
    ValueError: for a field that does not fit, or a step that there is not.
    JaxRuntimeError: if the compiler fails for another reason than memory.
  """
  if step not in STEPS:
    raise ValueError(f"step={step!r} must be one of {', '.join(STEPS)}.")
  started = time.perf_counter()
  lowered = STEPS[step](config, devices, info)
  middle = time.perf_counter()
  kind, report = devices[0].device_kind, None
  needed = lowered.argument_bytes
  with tempfile.TemporaryDirectory(prefix="program_") as dump:
    try:
      with jax.set_mesh(lowered.mesh):
        compiled = lowered.program.compile(program_report.dumping(kind, dump))
    except jax.errors.JaxRuntimeError as error:
      if _NO_ROOM not in str(error):
        raise
      needed = _required_bytes(str(error)) or needed
      ended = time.perf_counter()
    else:
      ended = time.perf_counter()
      report = program_report.read(compiled, lowered.mesh, dump)
      needed = report.argument_bytes + report.temporary_bytes
  chip = topologies.CHIPS.get(kind)
  return Outcome(
    fits=report is not None,
    needed_bytes=needed,
    available_bytes=chip and chip.memory,
    lower_seconds=middle - started,
    compile_seconds=ended - middle,
    chips=len(devices),
    kind=kind,
    mesh={axis: n for axis, n in lowered.mesh.shape.items() if n > 1},
    rows=lowered.rows,
    argument_bytes=lowered.argument_bytes,
    report=report,
  )


def _required_bytes(message: str) -> int:
  """What the compiler says that is needed, as "32.00G".

  It speaks of temporaries, but arguments and results are in it.
  """
  found = re.search(r"([\d.]+)([KMGT]?)\) exceeds", message)
  return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def _train(config, devices, info) -> Lowered:
  made = experiment.create(config, devices, info)
  arguments = made.state, made.batch
  with jax.set_mesh(made.mesh):
    program = made.train_step.lower(*arguments)
  return _lowered(program, made.mesh, config.batch_size, arguments)


def _evaluate(config, devices, info) -> Lowered:
  made = experiment.create_evaluation(config, devices, info)
  spec = made.task.batch_spec(config.eval_batch_size, train=False)
  arguments = made.variables, evaluation.placed(spec, made.mesh)
  with jax.set_mesh(made.mesh):
    program = jax.jit(made.task.evaluate_step).lower(*arguments)
  return _lowered(program, made.mesh, config.eval_batch_size, arguments)


def _decode(config, devices, info) -> Lowered:
  made = experiment.create_evaluation(config, devices, info)
  program, arguments = decoding_steps.lower(made)
  return _lowered(program, made.mesh, config.eval_batch_size, arguments)


def _lowered(program, mesh, rows, arguments) -> Lowered:
  size = sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(arguments)
    if isinstance(leaf.sharding, NamedSharding)
  )
  return Lowered(program, mesh, rows, size)


STEPS: dict[str, Callable[..., Lowered]] = {
  "train": _train,
  "eval": _evaluate,
  "decode": _decode,
}
