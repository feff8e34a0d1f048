"""Checkpoints that are whole or refused: Orbax behind one small class."""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from training import fingerprints, metrics


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none could be read."""


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
    *,
    read_only: bool = False,
  ):
    """Opens the directory; `config` has `keep_last` and `best_metric`.

    Raises:
      ValueError: for a metric of which it is not known which is better.
    """
    metrics.check_best_metric(config.best_metric, metrics.DIRECTIONS)
    self._better = functools.partial(metrics.better, config.best_metric)
    self.directory = epath.Path(workdir).resolve() / "checkpoints"
    if not read_only:
      self.directory.mkdir(parents=True, exist_ok=True)

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
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          record=ocp.args.JsonSave(record),
        ),
        # One that is NaN is no measure, and never the best.
        metrics=None if self._better(metrics) is None else metrics,
      )

  def wait(self) -> None:
    """Waits for all saves; raises CheckpointError if one failed."""
    with self._writing():
      self._manager.wait_until_finished()

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
    one has been read; if none can be read nothing is touched.

    Args:
      like: a tree of `jax.ShapeDtypeStruct` with shardings.
      step: read this one only, and put nothing aside.

    Returns:
      (state, record), or None if there are no checkpoints.

    Raises:
      CheckpointError: if there are checkpoints and none could be read.
    """
    candidates = self.steps()[::-1] if step is None else [step]
    failures: dict[int, Exception] = {}
    for candidate in candidates:
      try:
        result = self._read(candidate, like)
      # Damage shows as anything from a missing file to a failed allocation.
      # Nothing is hidden: each is logged, and all are raised if none is left.
      except Exception as error:
        logging.error(
          "The checkpoint of step %d in %s is damaged: %s",
          candidate,
          self.directory,
          _short(error),
        )
        failures[candidate] = error
        continue
      if step is None:
        self._put_aside(list(failures))
      return result
    if failures:
      raise CheckpointError(
        f"No checkpoint in {self.directory} can be read; nothing was changed. "
        "Remove the directory to start anew. "
        + " ".join(f"Step {s}: {_short(e)}" for s, e in failures.items())
      ) from next(iter(failures.values()))
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
      {"params", "batch_stats"}.

    Raises:
      CheckpointError: if it cannot be read.
    """
    try:
      return self._read_variables(step, sharding, averaged)
    # As in `restore`: damage shows as anything.
    except Exception as error:
      raise CheckpointError(
        f"The checkpoint of step {step} in {self.directory} cannot be read: "
        f"{_short(error)}"
      ) from error

  def _read_variables(
    self, step: int, sharding: jax.sharding.Sharding, averaged: bool
  ) -> dict[str, Any]:
    with ocp.StandardCheckpointer() as checkpointer:
      folder = self.directory / str(step) / "state"
      saved = checkpointer.metadata(folder).item_metadata.tree
    names = ("params", "batch_stats", "ema")
    like = {
      name: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        saved[name],
      )
      for name in (names if averaged else names[:2])
    }
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          like,
          restore_args=ocp.checkpoint_utils.construct_restore_args(like),
          partial_restore=True,
        ),
        record=ocp.args.JsonRestore(),
      ),
    )
    state = restored.state
    _check_fingerprint(state, restored.record["fingerprint"])
    average = state.pop("ema", None)
    return average or {name: state[name] for name in names[:2]}

  def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like),
        record=ocp.args.JsonRestore(),
      ),
    )
    record = dict(restored.record)
    _check_fingerprint(restored.state, record.pop("fingerprint"))
    return restored.state, record

  def _put_aside(self, steps: list[int]) -> None:
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        path = self.directory / str(step)
        path.rename(self.directory / f"{step}.damaged")
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged checkpoints put aside")
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


def _check_fingerprint(state: Any, expected: dict[str, int]) -> None:
  found = fingerprints.fingerprint(state)
  changed = [name for name in found if found[name] != expected.get(name)]
  if changed:
    raise ValueError(
      f"{len(changed)} of {len(found)} arrays are not as they were saved: "
      f"{', '.join(changed[:5])}."
    )


def _short(error: Exception) -> str:
  text = " ".join(str(error).split()) or type(error).__name__
  return text if len(text) < 300 else text[:300] + "..."
