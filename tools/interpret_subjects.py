"""Trained models that studies look into, each trained once and shared."""

from typing import Any, NamedTuple

import jax
import ml_collections
from etils import epath

import experiment
from configs import vision_language
from input_pipeline.sequences import digits_grid as source
from models.vision_language import VisionLanguage
from tools import study


class Subject(NamedTuple):
  """A trained model and what it was trained for.

  Attributes:
    model: that was trained; `model.apply(variables, tokens, images)`.
    variables: of the last step.
    task: of the run, with `info` and `evaluate_step`.
    source: of the training's questions, for `grid_questions.ask`.
    config: of the run.
  """

  model: VisionLanguage
  variables: dict[str, Any]
  task: Any
  source: source.DigitsGrid
  config: ml_collections.ConfigDict


def digits_grid(
  folder: epath.Path, seed: int, variant: str = "full"
) -> Subject:
  """The vision-language model of `configs/vision_language.py:digits_grid`.

  It is trained by the first call and kept in `folder / f"digits_grid_{seed}"`.

  Args:
    folder: of what studies share.
    seed: of the training.
    variant: "full", or "test" for a very small one that is not trained, since
      setting up a run takes longer than all else in a test.
  """
  config = digits_grid_config(seed, variant)
  setup = experiment.create_evaluation(config)
  if variant == "test":
    variables = jax.jit(setup.task.init)(jax.random.key(seed))
  else:
    workdir = epath.Path(folder) / f"digits_grid_{seed}"
    state, _ = study.train(config, str(workdir), show=False)
    variables = state.variables()
  return Subject(
    model=setup.task.model,
    variables=jax.device_get(variables),
    task=setup.task,
    source=source.DigitsGrid(**config.data.options),
    config=config,
  )


def digits_grid_config(seed: int, variant: str) -> ml_collections.ConfigDict:
  """The run of `digits_grid`."""
  config = vision_language.get_config("digits_grid")
  config.seed = seed
  if variant == "test":
    config.model.update(_SMALL)
    config.data.eval_examples = config.eval_batch_size = 4
  return config


# Patches are digits, as in the full one.
_SMALL = {
  "width": 8,
  "depth": 2,
  "heads": 2,
  "mlp_width": 8,
  "vision_levels": (1,),
  "vision": {
    "width": 8,
    "depth": 1,
    "heads": 2,
    "hidden_width": 8,
    "patch_size": 8,
    "image_size": 32,
    "class_token": False,
  },
}
