"""TauGate beside LoRA, bias tuning, IA3 and training all, on turned digits."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from configs import digits
from input_pipeline import images as image_data
from models import taps
from tools import adapted_runs
from training import paths

GROUP = "adapters"
TITLE = "Dopamine's TauGate (2602.11726)"
TEXT = """\
A perceptron of 64-256-256-10 learns the digits of 8 x 8 pixels, each turned by
45 degrees with a probability of one half. It is frozen then, and 150 steps on
turned digits train a part of it, or something that is put into it; figures are
of the 360 test images, turned. "gain" is the accuracy less that of the frozen
model of the same seed, of which the deviation is that of paired differences;
"upright" is the accuracy on images that are not turned, which nothing is
trained on any more. The paper says that a threshold and a factor for each
neuron are better than the frozen model, and less than LoRA with more
parameters. Where its gates stand and begin is our choice, for only the abstract
is known. "hard" is the accuracy of the same gates made zero or one, "open" the
share of neurons and images with g > 0.5 behind a positive activation, and
"thresholds" the share that are above 0, so that they can close a ReLU that is
open. Controls: the frozen model, a factor alone (IA3), and training all.
"""
SEEDS = (0, 1, 2, 3, 4)
COLUMNS = (
  ("trained", ",.0f"),
  ("accuracy", ".2%"),
  ("gain", "+.2%"),
  ("loss", ".4f"),
  ("upright", ".2%"),
  ("hard", ".2%"),
  ("open", ".1%"),
  ("thresholds", ".1%"),
)
Row = tuple[str, dict[str, Any]]
_HIDDEN = ("layer_1", "logits")


def _gates(**options: Any) -> tuple[Any, ...]:
  return tuple(
    (place, {"name": "tau_gate", "source": source, **options})
    for place, source in zip(_HIDDEN, ("layer_0", "layer_1"), strict=True)
  )


_GATE = {"inserts": _gates(), "trainable": ("tau_gate",), "learning_rate": 1e-2}
_ROWS = {
  "frozen": {},
  "TauGate": _GATE,
  "TauGate, sharpness 5 to 20": {
    **_GATE,
    "inserts": _gates(sharpness=5.0, last_sharpness=20.0, anneal_steps=150),
  },
  "IA3 (factors alone)": {
    "inserts": tuple(
      (place, {"name": "ia3", "side": "input"}) for place in _HIDDEN
    ),
    "trainable": ("ia3",),
    "learning_rate": 1e-2,
  },
  "biases": {"trainable": ("bias",), "learning_rate": 1e-2},
  "LoRA, rank 4": {
    "inserts": (("layer_.*|logits", {"name": "lora", "rank": 4}),),
    "trainable": ("lora",),
  },
  "all": {},
}
_TURNED = "turn(degrees=45)"
# Steps of the mixture, and of turned digits.
_STEPS = {"full": (150, 150), "test": (1, 1)}


def rows(variant: str) -> list[Row]:
  """The names of rows, and what each trains."""
  chosen = list(_ROWS.items())
  return chosen if variant == "full" else [chosen[0], chosen[1]]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains what a row says, and measures it.

  Args:
    folder: where the models of the mixture are.
    name: of the row.
    options: see `adapted_runs.adapted`.
    seed: of both trainings.
    variant: "full" or "test".

  Returns:
    What COLUMNS names; of gates only where there are.
  """
  first, second = _STEPS[variant]
  mixture = _config(seed, first, "turn(degrees=45, probability=0.5)")
  source, before = adapted_runs.foundation(mixture, folder, "dopamine")
  config = _config(seed, second, _TURNED)
  _, frozen = adapted_runs.evaluated(config, before)
  found, count = before, 0
  if name != "frozen":
    config = adapted_runs.adapted(config, source, options)
    found, count = adapted_runs.trained(config)
  _, turned = adapted_runs.evaluated(config, found)
  upright = config.copy_and_resolve_references()
  upright.data.eval_transform = "resize(method=bilinear)"
  figures = {
    "trained": count,
    "accuracy": turned["accuracy"],
    "gain": turned["accuracy"] - frozen["accuracy"],
    "loss": turned["loss"],
    "upright": adapted_runs.evaluated(upright, found)[1]["accuracy"],
  }
  if "tau_gate" in config.trainable:
    task, hard = adapted_runs.evaluated(config, found, hard=True)
    figures |= {"hard": hard["accuracy"], **_gate_figures(task, found)}
  return {key: float(value) for key, value in figures.items()}


def _gate_figures(task: Any, variables: dict[str, Any]) -> dict[str, float]:
  """How many gates are open on test images, and how many thresholds above 0.

  Args:
    task: whose gates are hard; for a hard gate is open where g > 0.5 is.
    variables: of its model.
  """

  @jax.jit
  def look(images):
    x = task.normalize(images)
    maps = task.model.apply(variables, x, method="features")
    _, gates = taps.read(task.model, variables, x, names=["*/gate"])
    return jnp.stack([gate.mean(1) for gate in _open(maps, gates)])

  config = task.config
  batches = image_data.eval_batches(
    config.data, batch_size=config.eval_batch_size
  )
  shares = [
    np.asarray(look(batch["image"]))[:, np.asarray(batch["mask"]) > 0]
    for batch in batches
  ]
  leaves = paths.flatten_with_names(variables["params"])
  thresholds = [x for path, x in leaves.items() if path.endswith("threshold")]
  positive = np.concatenate([np.asarray(x) for x in thresholds]) > 0
  return {
    "open": np.concatenate(shares, 1).mean(),
    "thresholds": positive.mean(),
  }


def _open(maps, gates):
  """Of each hidden layer [rows, neurons], those that are active and open."""
  for place, activation in zip(_HIDDEN, maps, strict=True):
    (gate,) = (x for path, x in gates.items() if f"{place}/" in path)
    yield gate * (activation[:, 0, 0] > 0)


def _config(seed: int, steps: int, transform: str) -> ml_collections.ConfigDict:
  """Of both trainings: Adam without decay, a constant learning rate."""
  config = digits.recipe()
  config.model = dict(name="perceptron")
  config.seed = seed
  config.data.image_size = 8
  config.data.train_transform = transform
  config.data.eval_transform = _TURNED
  config.batch_size = 128
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  config.loss.label_smoothing = 0.0
  config.optimizer.update(
    dict(name="adam", learning_rate=1e-3, schedule="constant")
  )
  config.optimizer.update(dict(weight_decay=0.0, warmup="0 steps"))
  config.optimizer.final_learning_rate = 0.0
  config.ema.decay = 0.0
  return config
