"""p-adapters with several exponents beside a plain adapter of equal size."""

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from configs import sequences
from tools import adapted_runs
from training import paths

GROUP = "adapters"
TITLE = "p-adapter (2312.10613)"
TEXT = """\
A decoder of two layers learns to recall the one value that there is, or to
repeat the token before; it is frozen then, and what is put at the output
projections of its attention learns to tell eight values by their keys, in 150
steps. "accuracy" and "loss" are of the task with eight; "exponent" is p, which
is a parameter, in the end. The paper says that p below 2 is better than
attention's own weights, p = 2. Of a token's edge to itself, which is in the
released code, the difference is zero, so that with a small p it outweighs all
others; one row is without. Controls: the frozen model, a plain bottleneck of as
many parameters at the same place, and training all. This is a toy task of ours
and says nothing of those of the paper, of images and captions.
"""
COLUMNS = (
  ("trained", ",.0f"),
  ("accuracy", ".2%"),
  ("loss", ".4f"),
  ("exponent", ".3f"),
)
Row = tuple[str, dict[str, Any]]


def _at_attention(**options: Any) -> dict[str, Any]:
  return {
    "inserts": (("mixer/out", options),),
    "trainable": (options["name"],),
  }


def _graph(p: float, **options: Any) -> dict[str, Any]:
  return _at_attention(name="p_adapter", width=16, exponent=p, **options)


_ROWS = {
  "frozen": {},
  "plain adapter": _at_attention(
    name="adapter", width=24, place="behind", activation="gelu"
  ),
  "p = 1.25": _graph(1.25),
  "p = 1.75": _graph(1.75),
  "p = 2": _graph(2.0),
  "p = 1.75, no edges to itself": _graph(1.75, self_edges=False),
  "all": {"learning_rate": 1e-3},
}
# Steps with one pair, and with eight.
_STEPS = {"full": (300, 150), "test": (1, 1)}
_PAIRS = (1, 8)


def rows(variant: str) -> list[Row]:
  """The names of rows, and what each trains."""
  chosen = list(_ROWS.items())
  return chosen if variant == "full" else [chosen[0], chosen[3]]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains what a row says, and measures it.

  Args:
    folder: where the models of one pair are.
    name: of the row.
    options: see `adapted_runs.adapted`.
    seed: of both trainings.
    variant: "full" or "test".

  Returns:
    What COLUMNS names; an exponent only where there is one.
  """
  steps = _STEPS[variant]
  first, config = (
    _config(seed, own, pairs, variant)
    for own, pairs in zip(steps, _PAIRS, strict=True)
  )
  source, found = adapted_runs.foundation(first, folder, "p_adapter")
  count = 0
  if name != "frozen":
    config = adapted_runs.adapted(config, source, options)
    found, count = adapted_runs.trained(config)
  _, result = adapted_runs.evaluated(config, found)
  figures = {
    "trained": count,
    "accuracy": result["accuracy"],
    "loss": result["loss"],
  }
  leaves = paths.flatten_with_names(found["params"])
  exponents = [x for path, x in leaves.items() if path.endswith("exponent")]
  if exponents:
    figures["exponent"] = np.mean([np.asarray(x) for x in exponents])
  return {key: float(value) for key, value in figures.items()}


def _config(
  seed: int, steps: int, pairs: int, variant: str
) -> ml_collections.ConfigDict:
  config = sequences.get_config("near_and_far")
  config.seed = seed
  config.data.options.pairs = pairs
  config.model.depth = 2
  if variant == "test":
    config.model.update(width=16, heads=2, mlp_width=16, depth=1)
    config.data.eval_examples = 4
    config.batch_size = config.eval_batch_size = 4
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  return config
