"""Flow attention in a diffusion transformer and in a language model."""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

import experiment
from configs import diffusion, language
from tools import study

TITLE = "Flowformer (2202.06258): flow attention, trained from the start"
SUBJECT = None
TEXT = """
Models trained alike but for their attention: a diffusion transformer on digits
of 8 x 8 pixels, 64 tokens of a pixel, and a byte-level language model; seeds
are of the whole training. Positions are added to tokens. The paper reports flow
attention ahead of softmax (80.6 to 78.7 % on ImageNet, perplexity 30.8 to 33.0
on WikiText-103) and of linear attention with ELU + 1, as here (79.0 %, 38.4),
and 31.2 without competition, which is here as we understand it: each source
counts 1. `loss` is that of the diffusion model on images that it was not
trained on, `bits per byte` that of the language model on such text.
"""
COLUMNS = (
  ("loss", ".4f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("bits_per_byte", ".3f"),
)
Row = tuple[str, dict[str, Any]]
# Steps of training, of the diffusion and of the language model, samples.
_SIZES = {"full": (160, 80, 100), "test": (1, 1, 10)}
# Of the diffusion and of the language model.
_DEPTHS = {"full": (3, 2), "test": (1, 1)}
_NO_COMPETITION = {"competition": "none"}


def rows(variant: str) -> list[Row]:
  """Softmax, flow, its ablation and linear attention."""
  found = [
    ("softmax", {"attend": "full", "mixer": "full"}),
    ("flow", {"attend": "flow", "mixer": "flow"}),
    (
      "flow, no competition",
      {"attend": "flow", "mixer": "flow", "options": _NO_COMPETITION},
    ),
    ("linear", {"attend": None, "mixer": "linear"}),
  ]
  return found if variant == "full" else found[1:3]


def measure(
  subject: Any, name: str, options: Mapping[str, Any], seed: int, variant: str
) -> dict[str, float]:
  """Trains both models with an attention, and measures them; see COLUMNS."""
  del subject, name
  images = _images(options, seed, variant)
  made = _evaluated(
    images,
    num_samples=_SIZES[variant][2],
    steps=12,
    guidance="1.5",
    seed=seed,
  )
  text = _evaluated(_language(options, seed, variant))
  return {
    "loss": float(made["loss"]),
    "accuracy": float(made["class_accuracy"]),
    "frechet": float(made["frechet_distance"]),
    "bits_per_byte": float(text["bits_per_byte"]),
  }


def _evaluated(config: ml_collections.ConfigDict, **options: Any) -> Any:
  """Trains a config, and returns what its task says of the result."""
  with tempfile.TemporaryDirectory() as workdir:
    state, _ = study.train(config, workdir, show=False)
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    return setup.task.evaluate(
      state.variables(), setup.mesh, lambda batches, total: batches, **options
    )


def _images(options, seed, variant) -> ml_collections.ConfigDict:
  config = diffusion.get_config("digits")
  config.model.update(dict(patch_size=(1, 1), width=48, heads=3))
  config.model.depth = _DEPTHS[variant][0]
  config.model.update(dict(position_encoding="sincos"))
  config.model.update(dict(conditioning="adaptive"))
  if options["attend"] is None:
    config.model.update(dict(mixer="linfusion"))
    config.model.update(dict(mixer_options=dict(update="none")))
  else:
    config.model.update(dict(attend=options["attend"]))
    config.model.update(dict(attend_options=options.get("options", {})))
  config.batch_size = 32
  config.evaluation.num_samples = 0
  config.ema.decay = 0.98
  return _short(config, _SIZES[variant][0], seed)


def _language(options, seed, variant) -> ml_collections.ConfigDict:
  config = language.get_config("study" if variant == "full" else "test")
  mixer = options["mixer"]
  config.model.update(dict(mixers=(mixer,), position_encoding="learned"))
  config.model.update(dict(max_length=config.data.length))
  own = options.get("options", {})
  config.model.mixer_options = {mixer: own} if own else {}
  config.model.depth = _DEPTHS[variant][1]
  return _short(config, _SIZES[variant][1], seed)


def _short(config, steps: int, seed: int) -> ml_collections.ConfigDict:
  """The config of so many steps, with an evaluation at the end alone."""
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  config.seed = seed
  return config
