"""Trains one config on meshes of eight devices, which `test_meshes.py` starts.

Other tests have four devices. The last line is JSON: by mesh how far training
moved the state and how far that is from where one device moves it, at once and
resumed from the checkpoint of one device, and what is said of the placement.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import experiment
from experiment.batches import create_train_batches
from tests.train_runs import LANGUAGE_TEXT, make_config
from training import checkpoints, evaluation, placement

STEPS, SAVED = 20, 10
# Of models this small no array would be split.
placement._MIN_FSDP_SIZE = 64
# Heads, channels and characters that two or four devices split.
JOBS = {
  "digits": {
    "model.widths": (32,),
    "model.head_dim": 8,
    "batch_size": 32,
  },
  "lina": {"model.width": 32, "model.heads": 4, "batch_size": 16},
  "language": {
    "model.heads": 4,
    "model.kv_heads": 2,
    "model.scan_layers": True,
    "data.tokenizer": "characters",
  },
}
MESHES = {
  "one": {},
  "data": {"data": 8},
  "all": {"slice": 2, "fsdp": 2, "model": 2},
  "model": {"fsdp": 2, "model": 4},
  "sequence": {"fsdp": 2, "sequence": 2, "model": 2},
}


def numbers(state):
  """All floating-point arrays of a state, on this host."""
  return [
    np.asarray(leaf, np.float64)
    for leaf in jax.tree.leaves(state)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]


def distance(a, b):
  """The largest difference, against the largest number of its array or one."""
  return max(
    float(np.abs(x - y).max() / max(1.0, np.abs(x).max()))
    for x, y in zip(a, b, strict=True)
  )


def train(made, state, batches):
  for batch in batches:
    batch = evaluation.put_batch({n: batch[n] for n in made.batch}, made.mesh)
    state, metrics = made.train_step(state, batch)
  return state, float(metrics["loss"])


def make(job, folder, sizes):
  config = make_config(job, folder)
  # Adam makes whole steps of gradients that are zero but for rounding; with a
  # larger epsilon they stay as small as they are.
  config.optimizer.eps = 1e-4
  config.ema.decay = 0.9
  config.train_for = f"{STEPS} steps"
  config.update_from_flattened_dict(JOBS[job])
  config.mesh.update(dict(data=1) | sizes)
  return experiment.create(config, jax.devices()[: 8 if sizes else 1])


def save(store, step, state):
  store.save(step, state, {})
  store.wait()


def main(job, folder, *meshes):
  if job == "language":
    # As many kinds of characters as four devices split.
    kinds = sorted(set(LANGUAGE_TEXT))[-48:]
    text = "".join(c for c in LANGUAGE_TEXT if c in kinds)
    make_config(job, folder)
    pathlib.Path(folder, "text.txt").write_text(text)
  store = checkpoints.Checkpoints(
    f"{folder}/store",
    ml_collections.ConfigDict(dict(keep_last=3, best_metric="loss")),
    {"loss": "min"},
  )
  made = make(job, folder, MESHES["one"])
  stream = create_train_batches(made)
  batches = [next(stream) for _ in range(STEPS)]
  stream.close()
  with jax.set_mesh(made.mesh):
    state = made.init()
    begun = numbers(state)
    save(store, 0, state)
    state, _ = train(made, state, batches[:SAVED])
    half = numbers(state)
    save(store, SAVED, state)
    state, loss = train(made, state, batches[SAVED:])
    whole = numbers(state)
  found = {"one": {"moved": distance(begun, whole), "loss": loss}}
  for name in meshes:
    made = make(job, folder, MESHES[name])
    with jax.set_mesh(made.mesh):
      state, _ = store.restore(made.state, step=0)
      state, loss = train(made, state, batches)
      resumed, _ = store.restore(made.state, step=SAVED)
      for a, b in zip(half, numbers(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
      resumed, _ = train(made, resumed, batches[SAVED:])
    found[name] = {
      "loss": loss,
      "distance": distance(whole, numbers(state)),
      "resumed": distance(whole, numbers(resumed)),
      "said": made.rules,
    }
  store.close()
  print(json.dumps(found))


if __name__ == "__main__":
  main(*sys.argv[1:])
