"""Exact evaluation: every example counts once, on any number of devices."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from training import hosts, sharding

Step = Callable[[Any, Any], dict[str, jax.Array]]


class EvaluationInterrupted(Exception):
  """The process was asked to stop in the middle of an evaluation."""


class Evaluation(Protocol):
  """Something that is measured of a model.

  Attributes:
    name: before the names of its metrics: "eval" makes "eval/loss".
    every: how often it runs, as "1 epochs"; None for `config.evaluate_every`.
  """

  name: str
  every: str | None

  def run(
    self, variables: Any, *, should_stop: Callable[[], bool]
  ) -> dict[str, Any]:
    """Measures.

    Args:
      variables: of the model.
      should_stop: to be polled between batches, equally often by all processes.

    Returns:
      Metrics as Python numbers.

    Raises:
      EvaluationInterrupted: if `should_stop()` became true.
    """


class SplitEvaluation:
  """Sums over all batches of a split; an `Evaluation`."""

  every = None

  def __init__(
    self,
    *,
    step: Step,
    spec: Mapping[str, jax.ShapeDtypeStruct],
    batches: Iterable[Mapping[str, np.ndarray]],
    num_batches: int,
    summarize: Callable[[Mapping[str, np.ndarray]], dict[str, Any]],
    mesh: jax.sharding.Mesh,
    name: str = "eval",
  ):
    """Takes what it needs; compiles nothing.

    Args:
      step: `(variables, batch) -> sums`, to be jitted.
      spec: the arrays of a global batch that `step` takes.
      batches: this process's rows, padded, equally many batches on each
        process; can be iterated again.
      num_batches: how many.
      summarize: makes metrics of the sums over all batches.
      mesh: the device mesh.
      name: see `Evaluation`.
    """
    self.name = name
    self.batches = batches
    self._step = jax.jit(step)
    self._spec = spec
    self._num_batches = num_batches
    self._summarize = summarize
    self._mesh = mesh

  def lower(self, variables: Any) -> jax.stages.Lowered:
    """Lowers the step, of which one batch of the spec's shapes is a call."""
    return self._step.lower(variables, placed(self._spec, self._mesh))

  def use(self, compiled: jax.stages.Compiled) -> None:
    """Runs this from now on, compiled of what `lower` returned."""
    self._step = compiled

  def run(
    self,
    variables: Any,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = (
      lambda batches, total: batches
    ),
  ) -> dict[str, Any]:
    """Runs all batches; see `Evaluation`, and `progress` of `Task.evaluate`."""
    totals = sum_batches(
      self._step,
      variables,
      progress(self.batches, self._num_batches),
      self._mesh,
      names=self._spec,
      should_stop=should_stop,
    )
    return self._summarize(totals)


def placed(
  spec: Mapping[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """The arrays of a batch with their places on the mesh."""
  rows = sharding.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
    for name, array in spec.items()
  }


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Makes global arrays of this process's rows of a batch."""
  hosts.went_on()
  rows = sharding.batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(rows, array)
    for name, array in batch.items()
  }


def sum_batches(
  step: Step,
  variables: Any,
  batches: Iterable[Mapping[str, np.ndarray]],
  mesh: jax.sharding.Mesh,
  *,
  names: Iterable[str],
  should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray]:
  """Adds up what a step returns of each batch.

  Args:
    step: `(variables, batch) -> sums`.
    variables: what the step takes.
    batches: this process's rows.
    mesh: the device mesh.
    names: of the arrays that the step takes of a batch.
    should_stop: polled before each batch, so that a preemption notice is not
      kept waiting by a long evaluation.

  Returns:
    The sums, in float64.

  Raises:
    EvaluationInterrupted: if `should_stop()` became true.
  """
  totals: dict[str, np.ndarray] = {}
  pending = None
  for batch in batches:
    if should_stop():
      raise EvaluationInterrupted
    batch = put_batch({name: batch[name] for name in names}, mesh)
    sums = step(variables, batch)
    # The sums of the batch before: the device already works on this one.
    _add(totals, pending)
    pending = sums
  _add(totals, pending)
  return totals


def _add(
  totals: dict[str, np.ndarray], sums: dict[str, jax.Array] | None
) -> None:
  # In float64, since float32 stops counting single examples at 2^24.
  for name, value in jax.device_get(sums or {}).items():
    totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)


def means(
  totals: Mapping[str, np.ndarray], counts: Sequence[str] = ()
) -> dict[str, Any]:
  """Divides sums by their weight.

  Args:
    totals: sums, "weight" among them.
    counts: which of them are numbers of something, and stay what they are.

  Returns:
    Python floats, ints for counts, and of sums that are arrays these sums.

  Raises:
    ValueError: if there was nothing to evaluate.
  """
  weight = float(totals.get("weight", 0.0))
  if not weight:
    found = ", ".join(f"{n} {int(totals[n])}" for n in counts if n in totals)
    raise ValueError(
      "The evaluation split has no usable example: it is empty, or nothing of "
      f"it counts ({found or 'there was no batch'})."
    )
  summed: dict[str, Any] = {}
  for name, total in totals.items():
    if name in counts:
      summed[name] = int(total)
    elif name != "weight":
      summed[name] = total if np.ndim(total) else float(total / weight)
  return summed


def run_due(
  evaluations: Sequence[Evaluation],
  variables: Any,
  should_stop: Callable[[], bool],
  write: Callable[[str, dict[str, Any]], None],
) -> dict[str, Any]:
  """Runs evaluations one after the other.

  Args:
    evaluations: that are due.
    variables: of the model.
    should_stop: see `Evaluation`.
    write: takes the name of each and what it measured.

  Returns:
    What they measured together: of "eval" by its own names, of others as
    "name/metric".

  Raises:
    EvaluationInterrupted: if `should_stop()` became true.
  """
  together = {}
  for each in evaluations:
    result = each.run(variables, should_stop=should_stop)
    write(each.name, result)
    prefix = "" if each.name == "eval" else f"{each.name}/"
    together |= {prefix + name: value for name, value in result.items()}
  return together
