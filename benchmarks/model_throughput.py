"""Images per second of a model's forward pass and training step, beside timm.

  python -m benchmarks.model_throughput --models=maxvit_tiny_224,halonet50ts

Images have the size that the model was published for. The paper's halonet_h1
is compared with timm's, which has twice the heads in the first stage, and
ResNet-RS with timm's of its depth; a model that timm has not is an error.

Ours and timm's run in turns in one process, on the same device, so that
whatever else the machine does meets both; the ratio is the median of the
rounds' ratios. timm gets the faster of its two memory layouts. A training step
is forward, backward and AdamW on cross-entropy, without stochastic depth or
dropout.
"""

import json
import platform
import re
import statistics
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from absl import app, flags

import models
import tasks
from benchmarks import flag_checks, turns
from configs import common
from input_pipeline import images as image_data
from tools import torch_imports
from training import (
  host_memory,
  optimizers,
  train_state,
  train_step,
)

_MODELS = flags.DEFINE_list("models", ["maxvit_tiny_224"], "Names of models.")
_PASSES = flag_checks.define_names(
  "passes", ["forward", "train"], ["forward", "train"], "What to time."
)
_BATCH = flags.DEFINE_integer(
  "batch_size", 8, "Images in a batch.", lower_bound=1
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Compute dtype of both."
)
_COMPILE = flags.DEFINE_bool("compile", False, "torch.compile timm's model.")

NUM_CLASSES = 1000


def main(argv: Sequence[str]) -> None:
  """Prints a row for each model and pass."""
  del argv
  try:
    peers = {name: peer_name(name) for name in _MODELS.value}
  except (ImportError, ValueError) as error:
    raise SystemExit(f"{type(error).__name__}: {error}") from None
  host_memory.keep_freed_memory()
  for name, peer in peers.items():
    for which in _PASSES.value:
      row = measure(name, peer, which)
      print(json.dumps(row) if turns.JSON.value else describe(row), flush=True)


def measure(name: str, peer: str, which: str) -> dict[str, str | float]:
  """Times one pass of one model, ours and timm's `peer` in turns."""
  size = models.image_size(name)
  images = np.random.default_rng(0).integers(
    0, 256, (_BATCH.value, size, size, 3), np.uint8
  )
  labels = np.arange(_BATCH.value, dtype=np.int32) % NUM_CLASSES
  ours = our_pass(name, which, images, labels)
  peers = [
    peer_pass(peer, which, images, labels, layout)
    for layout in ("contiguous_format", "channels_last")
  ]
  # One turn each to compile and to choose the peer's layout.
  time_turn(ours)
  theirs = max(peers, key=time_turn)
  rounds = [
    (time_turn(ours), time_turn(theirs)) for _ in range(turns.ROUNDS.value)
  ]
  device = jax.devices()[0]
  return {
    "model": name,
    "pass": which,
    "dtype": _DTYPE.value,
    "device": device.device_kind
    if device.platform != "cpu"
    else f"{platform.machine()} CPU",
    "batch_size": _BATCH.value,
    "ours_images_per_s": statistics.median(a for a, _ in rounds),
    "peer": f"timm {peer}" + (" compiled" * _COMPILE.value),
    "peer_images_per_s": statistics.median(b for _, b in rounds),
    "ratio": statistics.median(a / b for a, b in rounds),
  }


def describe(row: dict[str, str | float]) -> str:
  """One line for people."""
  return (
    f"{row['model']} {row['pass']} {row['dtype']} on {row['device']}, batch "
    f"{row['batch_size']}: {row['ours_images_per_s']:.2f} images/s, "
    f"{row['peer']} {row['peer_images_per_s']:.2f}, ratio {row['ratio']:.2f}"
  )


def peer_name(name: str) -> str:
  """Returns timm's name of the same network.

  Raises:
    ValueError: if timm has none, or we have no such model.
  """
  _, timm = torch_imports.import_timm()
  found = {
    n: peer
    for n in models.list(kind="image")
    if timm.is_model(peer := _rename(n))
  }
  if name not in found:
    raise ValueError(
      f"models has {name!r}, which timm lacks; it has {', '.join(found)}"
    )
  return found[name]


def _rename(name: str) -> str:
  """What timm would call it."""
  patterns = {
    r"(maxvit_[a-z]+)_(\d+)": r"\1_tf_\2",
    r"resnetrs_(\d+)_\d+": r"resnetrs\1",
    r"(.+)_timm": r"\1",
    # timm's has other heads.
    "halonet_h1": "",
  }
  for pattern, replacement in patterns.items():
    if match := re.fullmatch(pattern, name):
      return match.expand(replacement)
  return name


def time_turn(run: turns.Run) -> float:
  """Images per second over at least `--seconds`."""
  return turns.rate(run, _BATCH.value, turns.SECONDS.value)


def our_pass(
  name: str, which: str, images: np.ndarray, labels: np.ndarray
) -> turns.Run:
  """A function that runs our pass once and waits for it."""
  config = common.get_config()
  config.data.image_size = images.shape[1]
  config.optimizer.weight_decay = 0.05
  config.dtype = _DTYPE.value
  config.model = ml_collections.ConfigDict(
    {"name": name, "stochastic_depth_rate": 0.0}
  )
  if "dropout_rate" in models.fields(name):
    config.model.dropout_rate = 0.0
  classes = tuple(map(str, range(NUM_CLASSES)))
  task = tasks.create(
    config, image_data.DatasetInfo(num_eval_examples=0, class_names=classes)
  )
  batch = jax.device_put(
    {
      "image": images,
      "label": labels,
      "mask": np.ones(len(labels), "float32"),
      "damaged": np.zeros(len(labels), bool),
    }
  )
  if which == "forward":
    variables = jax.jit(task.init)(jax.random.key(0))
    forward = jax.jit(
      lambda v, x: task.model.apply(v, task.normalize(x), train=False)
    )
    return lambda: jax.block_until_ready(forward(variables, batch["image"]))
  if which != "train":
    raise ValueError(f"passes={which!r} is neither forward nor train.")
  tx = optimizers.create_optimizer(config.optimizer, lambda step: 1e-3)
  state = jax.jit(
    lambda key: train_state.create_state(task.init(key), tx, key, use_ema=False)
  )(jax.random.key(0))
  step = jax.jit(
    train_step.make_train_step(task, tx, lambda step: 1e-3, config),
    donate_argnums=0,
  )

  def run() -> None:
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))

  return run


def peer_pass(
  peer: str, which: str, images: np.ndarray, labels: np.ndarray, layout: str
) -> turns.Run:
  """A function that runs timm's pass once and waits for it."""
  torch, timm = torch_imports.import_timm()
  device = "cuda" if torch.cuda.is_available() else "cpu"
  memory_format = getattr(torch, layout)
  model = timm.create_model(peer, num_classes=NUM_CLASSES)
  model = model.to(device, memory_format=memory_format)
  x = torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
  x = x.to(device, memory_format=memory_format)
  y = torch.tensor(labels, dtype=torch.long, device=device)
  autocast = torch.autocast(
    device, torch.bfloat16, enabled=_DTYPE.value == "bfloat16"
  )
  wait = torch.cuda.synchronize if device == "cuda" else lambda: None
  call = torch.compile(model) if _COMPILE.value else model
  if which == "forward":
    model.eval()

    def forward() -> None:
      with torch.inference_mode(), autocast:
        call(x)
      wait()

    return forward
  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)

  def train() -> None:
    optimizer.zero_grad()
    with autocast:
      logits = call(x)
    torch.nn.functional.cross_entropy(logits.float(), y).backward()
    optimizer.step()
    wait()

  return train


if __name__ == "__main__":
  app.run(main)
