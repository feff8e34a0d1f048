"""LinFusion in the place of a trained model's self-attention."""

import functools
import math
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import experiment
from tasks.distillation import Distillation
from tools import study, work
from tools.generation_subject import cosine_to_dense

TITLE = "LinFusion (2409.02097): linear attention, distilled"
SUBJECT = "digits"
TEXT = """
Images of the trained side, of twice and of four times it, the larger ones
averaged down before they are judged; the seeds are of the distillation and of
the samples. "before" has the projections of the trained model in linear
attention, as `--method=linfusion` does; the others are distilled in 300 steps
by the paper's losses, which train the replaced modules alone. The paper copies
the projections, its released script lets them begin anew, and F = 0 is the
control that says what the added network is for. The paper expects samples as
good as with softmax, and larger ones for which nothing else is needed.
`features` is the error of the outputs of self-attention against the trained
model's, `multiply-adds` those of one pass at four times the side, in millions:
with 256 tokens the network F costs more than the scores that are saved.
"""
COLUMNS = (
  ("features", ".4f"),
  ("cosine", ".3f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("accuracy_2x", ".1%"),
  ("frechet_2x", ".2f"),
  ("accuracy_4x", ".1%"),
  ("frechet_4x", ".2f"),
  ("multiply-adds", ".1f"),
)
Row = tuple[str, dict[str, Any]]
# By how many times the side: samples. All in as many steps.
_SAMPLES = {"full": {1: 100, 2: 50, 4: 30}, "test": {1: 2, 2: 2, 4: 2}}
_STEPS = {"full": 16, "test": 2}
_TRAINING = {"full": 300, "test": 1}


def rows(variant: str) -> list[Row]:
  """Softmax, before, after, and controls."""
  found = [
    ("softmax", {}),
    ("before", {"update": "none"}),
    ("distilled", {"copied": True}),
    ("distilled, projections anew", {"copied": False}),
    ("distilled, F = 0", {"copied": True, "update": "none"}),
  ]
  return found if variant == "full" else found[:3]


def measure(
  subject: Any, name: str, options: Mapping[str, Any], seed: int, variant: str
) -> dict[str, float]:
  """Distils if the row says so, and samples at three sizes; see COLUMNS."""
  del name
  model, variables, figures = subject.model, subject.variables, {}
  if options:
    mixer = {"update": options.get("update", "network")}
    model = model.clone(mixer="linfusion", mixer_options=mixer)
  if "copied" in options:
    variables, figures = _distilled(subject, model, options, seed, variant)
  draw = functools.partial(subject.draw, seed=seed, steps=_STEPS[variant])
  for times, count in _SAMPLES[variant].items():
    labels = subject.conditions(count)["label"]
    size = [times * side for side in model.sample_shape]
    samples = draw(labels=labels, size=size, model=model, variables=variables)
    end = f"_{times}x" if times > 1 else ""
    quality = subject.quality(samples, labels)
    figures |= {f"{figure}{end}": x for figure, x in quality.items()}
    if times == 1:
      dense = draw(labels=labels) if options else samples
      figures["cosine"] = cosine_to_dense(samples, dense)
  return {**figures, "multiply-adds": _multiply_adds(model, variables) / 1e6}


def _distilled(subject, model, options, seed, variant):
  """Returns the variables behind the distillation, and its last figures."""
  config = _config(subject, model, options, seed, variant)
  with tempfile.TemporaryDirectory() as workdir:
    state, _ = study.train(config, workdir, show=False)
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    result = setup.task.evaluate_split(setup.mesh).run(state.variables())
  return {"params": state.params}, {"features": result["feature_loss"]}


def _config(subject, model, options, seed, variant):
  """That of the subject's run, made one of distillation."""
  steps = f"{_TRAINING[variant]} steps"
  config = subject.config.copy_and_resolve_references()
  own = Distillation.default_config().distillation
  own.copy_projections = options["copied"]
  with config.unlocked():
    config.task, config.distillation = "distillation", own
    config.model.mixer = "linfusion"
    config.model.mixer_options = dict(model.mixer_options)
  config.init.weights, config.seed = str(subject.workdir), seed
  config.batch_size = min(64, config.batch_size)
  config.train_for = config.evaluate_every = config.checkpoint.every = steps
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "constant"
  config.optimizer.warmup = "0 steps"
  config.optimizer.weight_decay = 0.0
  config.ema.decay = 0.0
  return config


def _multiply_adds(model, variables) -> int:
  """Of one image at four times the side, once through the model."""
  model = model.clone(implementation="xla")
  shape = (1, *(4 * side for side in model.sample_shape), model.channels)
  counted = work.count_work(
    lambda variables, x: model.apply(variables, x, jnp.zeros(1)),
    {"params": variables["params"]},
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )
  return math.ceil(counted.multiply_adds)
