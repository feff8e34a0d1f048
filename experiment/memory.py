"""What a step needs of a device, and what to do where that is not there."""

import contextlib
from collections.abc import Iterator

import jax

from experiment.build import Experiment
from training import placement, sharding

# When it runs, and when it compiles for a TPU.
_SIGNS = ("RESOURCE_EXHAUSTED", "Ran out of memory")
_STATE = ("params", "opt_state", "ema", "collections")


class OutOfMemoryError(RuntimeError):
  """A device has not the memory that the steps of a config need."""


@contextlib.contextmanager
def explained(experiment: Experiment) -> Iterator[None]:
  """Adds to XLA's error of missing memory the sizes and what would help.

  Raises:
    OutOfMemoryError: instead of XLA's.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    told = " ".join(str(error).split())
    if not any(sign in told for sign in _SIGNS):
      raise
    raise OutOfMemoryError(
      f"A device has too little memory. {describe(experiment)} "
      f"XLA says: {told[:500]}"
    ) from error


def describe(experiment: Experiment) -> str:
  """The bytes of a device before a step begins, and what would need less."""
  config, state = experiment.config, experiment.state
  sizes = {
    name: placement.bytes_per_device(getattr(state, name)) for name in _STATE
  }
  held = ", ".join(f"{name} {_mib(n)}" for name, n in sizes.items() if n)
  devices = sharding.batch_parts(experiment.mesh)
  rows = config.batch_size // config.accumulation_steps // devices
  batch = placement.bytes_per_device(experiment.batch)
  return (
    f"On each, the state has {_mib(sum(sizes.values()))} ({held}), the "
    f"gradient as much as params, and the batch {_mib(batch)}. What layers "
    f"keep for the gradient comes on top and grows with the {rows} examples "
    "that a device has at a time. What would need less: "
    + "; ".join(_remedies(experiment, rows))
    + "."
  )


def _remedies(experiment: Experiment, rows: int) -> list[str]:
  config, mesh = experiment.config, experiment.mesh
  found = []
  if rows > 1:
    # The least that divides them, as accumulation has to.
    parts = next(n for n in range(2, rows + 1) if rows % n == 0)
    found.append(
      f"--config.accumulation_steps={parts * config.accumulation_steps} takes "
      f"{rows // parts} at a time, for the same update"
    )
  model = experiment.task.model
  if getattr(model, "remat", None) is False:
    found.append(
      "--config.model.remat=true computes the layers once more instead of "
      "keeping what they made"
    )
  if config.dtype == "float32":
    found.append("--config.dtype=bfloat16 halves what layers keep")
  if mesh.shape["data"] > 1:
    shared = mesh.shape["data"] * mesh.shape["fsdp"]
    found.append(
      f"--config.mesh.fsdp={shared} --config.mesh.data=1 splits parameters, "
      f"optimizer and average {mesh.shape['data']} times more"
    )
  found.append(f"a --config.batch_size below {config.batch_size}")
  found.append(
    "in an evaluation a --config.eval_batch_size below "
    f"{config.eval_batch_size}"
  )
  found.append("more devices")
  return found


def _mib(size: int) -> str:
  return f"{size / 2**20:,.1f} MiB"
