"""Vision Remember beside a model that sees compressed image tokens once."""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

import experiment
from configs import vision_language
from tools import study

GROUP = "vision_remember"
TITLE = "Vision Remember (2506.03928)"
TEXT = """\
A ViT of two blocks and a decoder of three layers are asked which digit is at a
row and a column, trained alike from nothing in 600 steps, on images of four
handwritten digits on a grid of 2 x 2: on 4 x 4, with each token made of four
digits, 800 steps taught no row that was tried to use the image. 64 patches
become 4 tokens, each the mean of 4 x 4 patches; "local" and "global" put a
block after the first and the second layer, in which these tokens look at the
ViT's features of three depths, each at those of its own patches or all at all.
Both have the same parameters, more than the compressed model alone. The paper
says that looking again helps where details count, and that local is no worse
than global. Figures are of questions about handwriting that training has not
seen. An image has few classes of digits, and earlier answers name some of them,
so that a model which sees nothing is often right by chance. Controls: no
block, and no compression at all.
"""
COLUMNS = (
  ("parameters", ",.0f"),
  ("image_tokens", ".0f"),
  ("loss", ".3f"),
  ("accuracy", ".1%"),
)
_VISION = {
  "width": 32,
  "depth": 2,
  "heads": 2,
  "hidden_width": 64,
  "patch_size": 2,
  "image_size": 16,
  "class_token": False,
}
_SHARED = {
  "width": 48,
  "depth": 3,
  "heads": 4,
  "mlp_width": 96,
  "vision": _VISION,
  "vision_levels": (0, 1, 2),
}
_REMEMBER = {"compression": 4, "remember_layers": (1, 2), "remember_heads": 4}
_ROWS = {
  "compressed": {"compression": 4},
  "compressed, global": {**_REMEMBER, "remember": "global"},
  "compressed, local": {**_REMEMBER, "remember": "local"},
  "all patches": {"compression": 1},
}
# Steps, and examples to evaluate.
_SIZES = {"full": (600, 1000), "test": (1, 4)}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows and the fields of their models; of a test, one."""
  if variant == "full":
    return list(_ROWS.items())
  small = {"depth": 1, "vision": {**_VISION, "depth": 1}}
  small |= {"vision_levels": (1,), "remember_layers": (1,)}
  return [("compressed, local", {**_ROWS["compressed, local"], **small})]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains a model and asks it.

  Args:
    folder: of what rows share, which is nothing here.
    name: of the row.
    options: fields of the model.
    seed: of the training.
    variant: "full" or "test".

  Returns:
    What COLUMNS names.
  """
  del folder, name
  config = make_config(options, seed, variant)
  with tempfile.TemporaryDirectory() as workdir:
    state, _ = study.train(config, workdir, show=False)
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    result = setup.task.evaluate_split(setup.mesh).run(state.variables())
  side = _VISION["image_size"] // _VISION["patch_size"]
  return {
    "parameters": float(sum(x.size for x in jax.tree.leaves(state.params))),
    "image_tokens": float((side // options["compression"]) ** 2),
    "loss": result["loss"],
    "accuracy": result["accuracy"],
  }


def make_config(
  options: Mapping[str, Any], seed: int, variant: str
) -> ml_collections.ConfigDict:
  """The run of a row."""
  steps, examples = _SIZES[variant]
  config = vision_language.get_config("digits_grid_compressed")
  config.model.update({**_SHARED, **options})
  config.seed = seed
  config.data.eval_examples = examples
  config.data.options.update(side=2, questions=4, kinds=("which",))
  config.batch_size = 64 if variant == "full" else 4
  config.eval_batch_size = min(100, examples)
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  config.optimizer.learning_rate = 3e-3
  return config
