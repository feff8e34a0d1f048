"""LinFusion in the place of a trained model's self-attention."""

import functools
import math
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import experiment
import generation
from tasks.distillation import Distillation
from tools import study, work
from tools.generation_subject import cosine_to_dense

TITLE = "LinFusion (2409.02097): linear attention, distilled"
SUBJECT = "digits"
TEXT = """
Images of the trained side, and of twice and four times it, averaged down before
they are judged; the seeds are of the distillation and of the samples. "before"
has the projections of the trained model in linear attention, as
`--method=linfusion` does; the others are distilled in 200 steps by the paper's
losses, which train the replaced modules alone. The paper copies the
projections, its released script lets them begin anew, and F = 0 is the control
that says what the added network is for. Of the larger sizes `accuracy` is from
noise alone, which a model that saw one size need not know, and `refined` is the
paper's way: the sample of half the side is enlarged, given noise up to 0.6 of
the way, and sampled from there. `features` is the error of the outputs of self-
attention against the trained model's, `multiply adds` those of one pass at four
times the side, in millions: with 256 tokens the network F costs as much as the
scores that are saved.
"""
COLUMNS = (
  ("features", ".4f"),
  ("cosine", ".3f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("accuracy_2x", ".1%"),
  ("refined_2x", ".1%"),
  ("accuracy_4x", ".1%"),
  ("refined_4x", ".1%"),
  ("multiply_adds", ".1f"),
)
Row = tuple[str, dict[str, Any]]
# Of the trained side, and of the larger ones.
_SAMPLES = {"full": (100, 20), "test": (4, 4)}
_STEPS = {"full": 16, "test": 2}
# From where an enlarged sample goes on, and for guidance.
_TIME, _GUIDANCE = 600.0, 1.5
_TRAINING = {"full": 200, "test": 1}


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
  del name  # Its options say it.
  model, variables, figures = subject.model, subject.variables, {}
  if options:
    mixer = {"update": options.get("update", "network")}
    model = model.clone(mixer="linfusion", mixer_options=mixer)
  if "copied" in options:
    variables, figures = _distilled(subject, model, options, seed, variant)
  steps = _STEPS[variant]
  draw = functools.partial(subject.draw, seed=seed, steps=steps)
  count, few = _SAMPLES[variant]
  labels = subject.conditions(count)["label"]
  own = {"model": model, "variables": variables}
  samples = draw(labels=labels, **own)
  dense = draw(labels=labels) if options else samples
  figures |= subject.quality(samples, labels)
  figures["cosine"] = cosine_to_dense(samples, dense)
  labels, refined = labels[:few], samples[:few]
  for times in (2, 4):
    size = [times * side for side in subject.model.sample_shape]
    large = draw(labels=labels, size=size, **own)
    refined = _refined(subject, refined, labels, seed, steps, **own)
    for name, made in (("accuracy", large), ("refined", refined)):
      found = subject.quality(made, labels)
      figures[f"{name}_{times}x"] = found["accuracy"]
  return {**figures, "multiply_adds": _multiply_adds(model, variables) / 1e6}


def _refined(subject, samples, labels, seed, steps, *, model, variables):
  """Returns samples of twice the side: enlarged, given noise, and sampled."""
  rows, *sides, channels = samples.shape
  shape = (rows, *(2 * side for side in sides), channels)
  with jax.set_mesh(subject.mesh):
    x = jax.image.resize(jnp.asarray(samples), shape, "bilinear")
    times = [time for time in subject.path.times(steps) if time <= _TIME]
    noise = jax.random.normal(jax.random.key(seed), shape)
    denoise = generation.create_denoiser(
      model, variables, label=labels, guidance=_GUIDANCE
    )
    noisy = subject.path.add_noise(x, noise, times[0])
    made = generation.sample(denoise, noisy, subject.path, times=times)
  return np.asarray(made)


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
  config.batch_size = min(32, config.batch_size)
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
