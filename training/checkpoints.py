"""Checkpoints that are whole or refused: Orbax behind one small class."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

import storage
from training import fingerprints, hosts, metrics, paths

# From here on an array is copied faster from all devices than from one.
_SLICED_BYTES = 2**22
# Checkpoints in a row that may be missed before the run ends.
_MISSED = 3


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none could be read."""


class _MisfitError(ValueError):
  """A checkpoint is whole, but of another model or optimizer."""


@dataclasses.dataclass(frozen=True)
class _Save:
  """The last save that was started."""

  step: int | None = None
  state: Any = ()
  start: Callable[[], None] = lambda: None

  def check_arrays(self, fault: Exception) -> None:
    """Raises `CheckpointError` if they are gone, donated to the next step."""
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
      raise CheckpointError(
        f"{_short(fault)} The arrays are gone, so it is not tried again."
      )


class Checkpoints:
  """The checkpoints of one run, under `<workdir>/checkpoints`.

  Each holds the train state and a JSON record: the position in the data, the
  clock, and a fingerprint of every array, which is compared on reading. Saves
  are asynchronous, and become visible under their final name only when whole.
  """

  def __init__(
    self,
    workdir: str,
    config: ml_collections.ConfigDict,
    directions: Mapping[str, str],
    *,
    read_only: bool = False,
  ):
    """Opens the directory.

    Args:
      workdir: of the run.
      config: `keep_last` and `best_metric`.
      directions: of each metric, whether "min" or "max" is better.
      read_only: whether nothing is changed there.

    Raises:
      ValueError: for a metric of which it is not known which is better.
    """
    metrics.check_best_metric(config.best_metric, directions)
    self._better = functools.partial(
      metrics.better, config.best_metric, directions[config.best_metric]
    )
    self.directory = storage.absolute(storage.path(workdir)) / "checkpoints"
    if not read_only:
      storage.make_folder(self.directory)

    def metric(result):
      better = self._better(result)
      # Of a run that saved it before it was left out.
      return -math.inf if better is None else better

    policies = checkpoint_managers
    options = ocp.CheckpointManagerOptions(
      best_fn=metric,
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(n=config.keep_last),
          policies.BestN(
            get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
          ),
        ]
      ),
      # The loop decides when to save; Orbax would skip a step out of order.
      should_save_fn=lambda step, latest: True,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)
    self._last = _Save()
    # Saves in a row that a storage that did not answer has cost.
    self._missed = 0

  def steps(self) -> list[int]:
    """Steps of the whole checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """The step with the best evaluation among those kept."""
    return self._manager.best_step()

  def save(
    self,
    step: int,
    state: Any,
    record: dict[str, Any],
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts to write a checkpoint; returns when the arrays are copied.

    Args:
      step: the number of updates done.
      state: a tree of arrays.
      record: what JSON can hold.
      metrics: the evaluation after this step, if there was one.

    Raises:
      CheckpointError: if this or the save before it failed.
    """
    record = record | {"fingerprint": fingerprints.fingerprint(state)}

    def start() -> None:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(jax.tree.map(_one_copy, state)),
          record=ocp.args.JsonSave(record),
        ),
        # One that is NaN is no measure, and never the best.
        metrics=None if self._better(metrics) is None else metrics,
      )

    with self._writing():
      self._pass_over_a_missed_save()
      self._last = _Save(step, state, start)
      _retry_alone(start, f"beginning the checkpoint of step {step}")

  def _pass_over_a_missed_save(self) -> None:
    """Waits for the save before, which a storage may have missed.

    While a run goes on the arrays of a failed save are gone, and the next one
    is written instead. Processes of a pod would have to agree on that; there
    the error ends the run, as it does after a few in a row.
    """
    try:
      self._manager.wait_until_finished()
      self._missed = 0
    except Exception as error:
      self._missed += 1
      if (
        jax.process_count() > 1
        or self._missed > _MISSED
        or not storage.is_transient(error)
      ):
        raise
      logging.error(
        "The checkpoint of step %d could not be written: %s. The run goes on "
        "to the next one.",
        self._last.step,
        _short(error),
      )

  def wait(self) -> None:
    """Waits for all saves; raises CheckpointError if one failed.

    The last one is written again after transient errors, if its arrays still
    are there, as they are at the end of a run.
    """
    fault: Exception | None = None

    def finish() -> None:
      nonlocal fault
      if fault is not None:
        self._last.check_arrays(fault)
        self._manager.reload()
        self._last.start()
      try:
        self._manager.wait_until_finished()
      except Exception as error:
        fault = error
        raise

    with self._writing():
      _retry_alone(finish, f"writing the checkpoint of step {self._last.step}")

  def close(self) -> None:
    """Frees threads without waiting for anything but running saves.

    Raises:
      CheckpointError: if one of those failed.
    """
    with self._writing():
      self._manager.close()

  def restore(self, like: Any, step: int | None = None) -> Any:
    """Reads the newest whole checkpoint, or the one of `step`.

    A damaged one is reported and put aside as `<step>.damaged`, once an older
    one has been read; if none can be read nothing is touched. All processes
    read the same one: where one of them fails, all go on to the next.

    Args:
      like: a tree of `jax.ShapeDtypeStruct` with shardings.
      step: read this one only, and put nothing aside.

    Returns:
      (state, record), or None if there are no checkpoints.

    Raises:
      CheckpointError: if there are checkpoints and none could be read, or one
        is of another model or optimizer.
    """
    failures: dict[int, str] = {}
    for candidate in self._candidates() if step is None else [step]:

      def read(step=candidate):
        self._check_fit(step, like)
        handler = ocp.StandardCheckpointHandler
        return self._read(step, handler, ocp.args.StandardRestore(like))

      result, fault = _read_together(read)
      if not fault:
        if step is None:
          self._put_aside(list(failures))
        return result
      logging.error(
        "The checkpoint of step %d in %s is damaged: %s",
        candidate,
        self.directory,
        fault,
      )
      failures[candidate] = fault
    if failures:
      raise CheckpointError(
        f"No checkpoint in {self.directory} can be read; nothing was changed. "
        "Remove the directory to start anew. "
        + " ".join(f"Step {s}: {fault}" for s, fault in failures.items())
      )
    return None

  def restore_variables(
    self, step: int, sharding: jax.sharding.Sharding, *, averaged: bool
  ) -> dict[str, Any]:
    """Reads what a model needs of a checkpoint, whatever run it is from.

    Args:
      step: one of `steps()`.
      sharding: of all arrays.
      averaged: the moving average instead, if the run kept one.

    Returns:
      "params" and the other collections.

    Raises:
      CheckpointError: if it cannot be read.
    """
    names = ("params", "collections", "ema")

    def read():
      saved = self._saved_arrays(step)
      if "collections" not in saved:
        raise _MisfitError(
          f"The checkpoint of step {step} in {self.directory} has "
          f"{', '.join(saved)}, but no collections: it was written before "
          "models could have others than batch_stats."
        )
      like = {
        name: jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
          saved[name],
        )
        for name in (names if averaged else names[:2])
      }
      arguments = ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=True,
      )
      return self._read(step, ocp.PyTreeCheckpointHandler, arguments)

    result, fault = _read_together(read)
    if fault:
      raise CheckpointError(
        f"The checkpoint of step {step} in {self.directory} cannot be read: "
        f"{fault}"
      )
    state, _ = result
    average = state.pop("ema", None)
    return average or {"params": state["params"], **state["collections"]}

  def _candidates(self) -> list[int]:
    """All steps that any process sees, the newest first."""
    found = {step for steps in hosts.share(self.steps()) for step in steps}
    return sorted(found, reverse=True)

  def _saved_arrays(self, step: int) -> Any:
    """Shapes and dtypes of a checkpoint's arrays, as the tree they were in."""
    with ocp.StandardCheckpointer() as checkpointer:
      folder = self.directory / str(step) / "state"
      return checkpointer.metadata(folder).item_metadata.tree

  def _check_fit(self, step: int, like: Any) -> None:
    saved, wanted = (
      {name: _describe(x) for name, x in paths.flatten_with_names(tree).items()}
      for tree in (self._saved_arrays(step), like)
    )
    faults = [
      f"{name} is {saved.get(name, 'not there')} in the checkpoint and "
      f"{wanted.get(name, 'not there')} in this run"
      for name in sorted(saved.keys() | wanted.keys())
      if saved.get(name) != wanted.get(name)
    ]
    if faults:
      raise _MisfitError(
        f"The checkpoint of step {step} in {self.directory} does not fit the "
        f"model or its optimizer: {'; '.join(faults[:5])}"
        + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        + ". Nothing was changed. Choose another workdir, or take back what "
        "was overridden."
      )

  def _read(
    self, step: int, handler: type, arguments: Any
  ) -> tuple[Any, dict[str, Any]]:
    """Reads state and record in this process alone.

    Orbax ends each restoring with a barrier of all processes, where those that
    could read would wait for one that could not.
    """
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=process,
      active_processes={process},
      barrier_sync_key_prefix=f"process_{process}_reads",
    )
    handlers = ocp.CompositeCheckpointHandler(
      state=handler(multiprocessing_options=alone),
      record=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    with ocp.Checkpointer(handlers, multiprocessing_options=alone) as reader:
      restored = reader.restore(
        self.directory / str(step),
        args=ocp.args.Composite(state=arguments, record=ocp.args.JsonRestore()),
      )
    return restored.state, dict(restored.record)

  def _put_aside(self, steps: list[int]) -> None:
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        path = self.directory / str(step)
        path.rename(self.directory / f"{step}.damaged")
    hosts.share(None, "damaged checkpoints to be put aside")
    self._manager.reload()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Says of whatever fails what is left and what to do."""
    try:
      yield
    except Exception as error:
      raise CheckpointError(
        f"A checkpoint could not be written to {self.directory}: "
        f"{_short(error)} The checkpoints of steps {self.steps()} are intact; "
        "free space or repair the disk, and start the same command again."
      ) from error


def _retry_alone(operation: Callable[[], None], what: str) -> None:
  """`storage.retry`, but processes of a pod fail together."""
  if jax.process_count() > 1:
    operation()
  else:
    storage.retry(operation, what=what)


def _one_copy(array: jax.Array) -> jax.Array:
  """A small array that all devices of one process have, as one of them has it.

  Orbax would cut it into a slice for each device, which is a program to compile
  for each shape and to run for each slice: half the time of a small run.
  """
  if (
    jax.process_count() > 1
    or jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    or not array.is_fully_replicated
    or array.nbytes > _SLICED_BYTES
  ):
    return array
  return array.addressable_shards[0].data


def _read_together(
  read: Callable[[], tuple[Any, dict[str, Any]]],
) -> tuple[Any, str]:
  """Calls `read` in all processes and tells each whether all could.

  Returns:
    ((state, record), ""), or None and what was wrong, in which process.

  Raises:
    CheckpointError: if the checkpoint is whole and does not fit.
  """
  result, fault, fits = None, "", True
  try:
    # Each process reads alone, so each may try again.
    result = storage.retry(read, what="reading a checkpoint")
  except _MisfitError as error:
    fault, fits = str(error), False
  # Damage shows as anything from a missing file to a failed allocation.
  # Nothing is hidden: the caller logs it, and raises if nothing is left.
  except Exception as error:
    fault = _short(error)
  answers = hosts.share([fault, fits])
  for fault, fits in answers:
    if not fits:
      raise CheckpointError(fault)
  faults = [(i, fault) for i, (fault, _) in enumerate(answers) if fault]
  if not faults:
    # A computation of all processes, so only once all have the arrays.
    state, record = result
    fault = _changed_arrays(state, record.pop("fingerprint"))
    return (None, fault) if fault else ((state, record), "")
  if len(answers) == 1:
    return None, faults[0][1]
  return None, " ".join(f"In process {i}: {fault}" for i, fault in faults)


def _describe(array: Any) -> str:
  """ "float32 (33, 17)"; of random keys their data."""
  shape, dtype = array.shape, array.dtype
  if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    data = jax.eval_shape(jax.random.key_data, array)
    shape, dtype = data.shape, data.dtype
  return f"{dtype} {tuple(shape)}"


def _changed_arrays(state: Any, expected: dict[str, int]) -> str:
  """Says which arrays are not as they were saved; "" if all are."""
  found = fingerprints.fingerprint(state)
  changed = [name for name in found if found[name] != expected.get(name)]
  if not changed:
    return ""
  return (
    f"{len(changed)} of {len(found)} arrays are not as they were saved: "
    f"{', '.join(changed[:5])}."
  )


def _short(error: Exception) -> str:
  text = " ".join(str(error).split()) or type(error).__name__
  return text if len(text) < 300 else text[:300] + "..."
