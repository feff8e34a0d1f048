"""Measures for how long a checkpoint keeps the training waiting.

  python -m benchmarks.checkpoint_stall --mebibytes=64,256

The step after a save overwrites the arrays, so a save has to wait for the step
before, make a fingerprint of each array and copy it to the host's memory, and
no longer: writing goes on beside the next steps. For each size of a train state
the table has the milliseconds of a step, of the fingerprints and of copying
alone, for which a save has to wait, of a save until training goes on, and until
the checkpoint is whole; of each the fastest, since others use the machine too.
"""

import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging

from training import checkpoints, fingerprints

_MEBIBYTES = flags.DEFINE_list("mebibytes", ["64", "256"], "Sizes of a state.")
_SAVES = flags.DEFINE_integer("saves", 5, "Saves of each size.")
# Steps from one save to the next, by which it is whole.
_ARRAYS = 32


def make_state(mebibytes: int) -> dict[str, jax.Array]:
  """Arrays of one size, as the layers of a model are."""
  size = mebibytes * 2**20 // 4 // _ARRAYS
  return {f"layer_{i}": jnp.full(size, float(i)) for i in range(_ARRAYS)}


def measure(mebibytes: int, saves: int) -> dict[str, float]:
  """Seconds of a step, of copying, of a save, and until it is whole.

  Args:
    mebibytes: of the state.
    saves: of which the fastest is taken.
  """
  state = make_state(mebibytes)
  step = jax.jit(
    lambda state: jax.tree.map(lambda x: x * 1.0001, state), donate_argnums=0
  )
  state = step(state)
  config = ml_collections.ConfigDict(dict(keep_last=1, best_metric="loss"))
  seconds: dict[str, list[float]] = {
    name: [] for name in ("step", "fingerprint", "copy", "save", "whole")
  }
  with tempfile.TemporaryDirectory() as folder:
    store = checkpoints.Checkpoints(folder, config, {"loss": "min"})
    for number in range(saves + 1):
      jax.block_until_ready(state)
      marked = _seconds(fingerprints.fingerprint, state)
      copied = _seconds(jax.tree.map, np.array, state)
      began = time.perf_counter()
      store.save(number, state, {})
      saved = time.perf_counter() - began
      state = step(state)
      store.wait()
      whole = time.perf_counter() - began
      began = time.perf_counter()
      state = jax.block_until_ready(step(state))
      stepped = time.perf_counter() - began
      # The first one compiles the fingerprints.
      if number:
        for name, value in zip(
          seconds, (stepped, marked, copied, saved, whole), strict=True
        ):
          seconds[name].append(value)
    store.close()
  return {name: min(values) for name, values in seconds.items()}


def _seconds(call: Callable[..., object], *arguments: object) -> float:
  began = time.perf_counter()
  call(*arguments)
  return time.perf_counter() - began


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.ERROR)
  print("| state | step | fingerprint | copy | save waits | whole after |")
  print("|---|---|---|---|---|---|")
  for size in map(int, _MEBIBYTES.value):
    found = measure(size, _SAVES.value)
    cells = (f"{value * 1e3:,.0f} ms" for value in found.values())
    print(f"| {size} MiB | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
