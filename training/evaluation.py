"""Exact evaluation: every example counts once, on any number of devices."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from training import sharding


class EvaluationInterrupted(Exception):
  """The process was asked to stop in the middle of an evaluation."""


def put_batch(
  batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Makes global arrays of this process's rows of a batch."""
  rows = sharding.batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(rows, batch[name])
    for name in ("image", "label", "mask", "damaged")
  }


@jax.jit
def count_damaged(batch: dict[str, jax.Array]) -> jax.Array:
  """How many images of a global batch, on all processes, were skipped."""
  return batch["damaged"].sum()


def evaluate(
  evaluate_step: Callable[[Any, Any], dict[str, jax.Array]],
  variables: Any,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: jax.sharding.Mesh,
  *,
  should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Sums the metrics of all batches and divides once by their weight.

  Args:
    evaluate_step: jitted `(variables, batch) -> sums` with the key "weight".
    variables: what the step takes.
    batches: as `input_pipeline.eval_batches` gives them, padded, equally many
      on each process.
    mesh: the device mesh.
    should_stop: polled before each batch, so that a preemption notice is not
      kept waiting by a long evaluation.

  Returns:
    Means over the examples as Python floats, `examples`, their number,
    `damaged`, how many images were skipped on all processes together, and of
    sums that are arrays these sums.

  Raises:
    EvaluationInterrupted: if `should_stop()` became true.
    ValueError: if there was nothing to evaluate.
  """
  totals: dict[str, np.ndarray] = {}
  pending = None
  for batch in batches:
    if should_stop():
      raise EvaluationInterrupted
    batch = put_batch(batch, mesh)
    sums = evaluate_step(variables, batch)
    sums["damaged"] = count_damaged(batch)
    # The sums of the batch before: the device already works on this one.
    _add(totals, pending)
    pending = sums
  _add(totals, pending)
  weight = float(totals.pop("weight", 0.0))
  damaged = int(totals.pop("damaged", 0))
  if not weight:
    raise ValueError(
      "The evaluation split has no usable example: it is empty, or all of its "
      "records are damaged."
    )
  means = {
    name: total if total.ndim else float(total / weight)
    for name, total in totals.items()
  }
  return means | {"examples": int(weight), "damaged": damaged}


def _add(
  totals: dict[str, np.ndarray], sums: dict[str, jax.Array] | None
) -> None:
  # In float64, since float32 stops counting single examples at 2^24.
  for name, value in jax.device_get(sums or {}).items():
    totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)
