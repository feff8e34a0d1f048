"""What would make a step fit its chips: remat, more fsdp, or fewer rows.

Each answer was compiled. How many chips share the parameters and how many rows
there are is found by bisection: what fits still fits with more of the former
and with fewer of the latter.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from jax.sharding import Mesh

import models
from tools.compiled_steps import Outcome
from training import sharding

_BATCHES = {
  "train": "batch_size",
  "eval": "eval_batch_size",
  "decode": "eval_batch_size",
}


def with_batches_that_split(
  config: ml_collections.ConfigDict, devices: Sequence[Any]
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Makes batches larger until they can be split over the mesh.

  Returns:
    (config, notes): a config of its own, and a line for each that was changed.

  Raises:
    ValueError: if the mesh does not fit the devices.
  """
  config = config.copy_and_resolve_references()
  parts = sharding.batch_parts(sharding.create_mesh(config.mesh, devices))
  notes = []
  for field in ("batch_size", "eval_batch_size"):
    steps = config.accumulation_steps if field == "batch_size" else 1
    unit = parts * max(steps, 1)
    whole = -(-config[field] // unit) * unit
    if whole != config[field]:
      notes.append(
        f"{field}={config[field]} cannot be split into {unit}: compiled with "
        f"{whole}"
      )
      config[field] = whole
  return config, notes


def search(
  config: ml_collections.ConfigDict,
  devices: Sequence[Any],
  step: str,
  compile_step: Callable[[ml_collections.ConfigDict], Outcome],
) -> list[dict[str, Any]]:
  """Finds what would make a step fit that does not.

  Args:
    config: of the step.
    devices: that it is for.
    step: "train", "eval" or "decode".
    compile_step: compiles the step of another config.

  Returns:
    Changes of one kind that are enough, each with the fields of the config as
    "change" and with what a chip needs then; or if none is, of all together.
  """
  tries = _Search(config, compile_step)
  mesh = sharding.create_mesh(config.mesh, devices)
  remat = _remat(config) if step == "train" else {}
  if remat:
    tries.attempt(remat)
  shared = _fsdp(mesh)
  tries.bisect(shared)
  rows = _rows(config, step, sharding.batch_parts(mesh))
  tries.bisect(rows)
  if not tries.answers and (remat or shared):
    together = remat | (shared[-1] if shared else {})
    if not tries.attempt(together):
      tries.bisect([together | change for change in rows])
  return tries.answers


class _Search:
  """Compiles what was changed, and keeps what fits."""

  def __init__(self, config, compile_step):
    self.answers: list[dict[str, Any]] = []
    self._config = config
    self._compile = compile_step
    self._failed: set[str] = set()

  def attempt(self, change: dict[str, Any]) -> bool:
    if _text(change) in self._failed:
      return False
    changed = self._config.copy_and_resolve_references()
    with changed.unlocked():
      changed.update_from_flattened_dict(change)
    # Not where the one answer goes that a program may read.
    print(f"compiling with {_text(change)}", file=sys.stderr, flush=True)
    outcome = self._compile(changed)
    if outcome.fits:
      self.answers.append(_answer(change, outcome))
    else:
      self._failed.add(_text(change))
    return outcome.fits

  def bisect(self, changes: Sequence[dict[str, Any]]) -> None:
    """Keeps the first change that fits, of those that need ever less."""
    # The last is tried before those between: nothing may be enough.
    if not changes or not self.attempt(changes[-1]):
      return
    fails, fits = -1, len(changes) - 1
    while fits - fails > 1:
      middle = (fits + fails) // 2
      best = len(self.answers) - 1
      if self.attempt(changes[middle]):
        fits = middle
        del self.answers[best]
      else:
        fails = middle


def _remat(config) -> dict[str, Any]:
  """Turns remat on, where the model has it and it is off."""
  fields = models.fields(config.model.name)
  if "remat" not in fields or config.model.get("remat", fields["remat"][1]):
    return {}
  return {"model.remat": True}


def _fsdp(mesh: Mesh) -> list[dict[str, Any]]:
  """Ever more chips that share what is not the batch's, by powers of two."""
  data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
  sizes = []
  while data % 2 == 0:
    data, fsdp = data // 2, 2 * fsdp
    sizes.append({"mesh.data": data, "mesh.fsdp": fsdp})
  return sizes


def _rows(config, step: str, parts: int) -> list[dict[str, Any]]:
  """Ever fewer rows: by sixteenths of what there are, then by halves."""
  field = _BATCHES[step]
  unit = parts * (config.accumulation_steps if step == "train" else 1)
  now = config[field] // unit
  fewer = {now * n // 16 for n in range(1, 16)}
  fewer |= {now >> n for n in range(5, now.bit_length())}
  return [{field: n * unit} for n in sorted(fewer - {0, now}, reverse=True)]


def _answer(change, outcome: Outcome) -> dict[str, Any]:
  return {
    "change": change,
    "bytes_per_chip": outcome.needed_bytes,
    "peak_bytes": outcome.report.peak_bytes,
  }


def describe(answer: dict[str, Any]) -> str:
  """As "--config.batch_size=2048: at most 12.10 GiB a chip at once"."""
  size = size_text(answer["peak_bytes"])
  return f"{_text(answer['change'])}: at most {size} a chip at once"


def size_text(size: int) -> str:
  """As "12.10 GiB", or "3.4 MiB" of what is small."""
  gib = size / 2**30
  return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 2**10:.1f} MiB"


def _text(change) -> str:
  return " ".join(f"--config.{name}={value}" for name, value in change.items())
