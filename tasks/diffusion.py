"""Diffusion: images and videos out of noise, by DDPM or flow matching."""

import io
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

import generation
import models
import storage
from generation import solvers
from generation.paths import PREDICTIONS, SCHEDULES, Path
from input_pipeline import visual
from tasks import (
  diffusion_evaluation,
  diffusion_sampling,
  image_decoding,
  variational_bound,
  visual_batches,
)
from tasks.base import Batch, Shown, Variables, create_model
from tasks.generator import Generator
from training import evaluation
from training.ranges import Number, OneOf


class Diffusion(Generator):
  """Learns what noise was added, given a class or a text.

  The loss of an example is the mean squared error of what the model predicts,
  at one time that is drawn for it.

  Attributes:
    path: from data to noise, see `generation.paths`.
  """

  room = visual
  unit = "example"
  quality = diffusion_evaluation
  given = (
    "dtype",
    "sample_shape",
    "channels",
    "num_classes",
    "label_tokens",
    "text_width",
  )
  evaluate_options = diffusion_evaluation.OPTIONS
  sample_options = diffusion_sampling.OPTIONS
  ranges = types.MappingProxyType(
    {
      "path.name": OneOf(("ddpm", "flow")),
      "path.prediction": OneOf(PREDICTIONS),
      "path.schedule": OneOf(SCHEDULES),
      "path.steps": Number(1, whole=True),
      "path.times": OneOf(("uniform", "logit_normal")),
      "condition_dropout": Number(0, 1),
      "evaluation.num_samples": Number(0, whole=True),
      "sampling.steps": Number(1, whole=True),
      "sampling.guidance": Number(0),
      "sampling.solver": OneOf(tuple(solvers.SOLVERS)),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model, for the data of `info`.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self.path = create_path(config.path)
    if info.many_labels:
      raise ValueError(
        f"data.label={config.data.label!r}: images with several labels do not "
        "serve diffusion."
      )
    given = _fields_of_data(config, info)
    self.model = create_model(config, "diffusion", **given)
    self._learned_variance = getattr(self.model, "learned_variance", False)
    if self._learned_variance and config.path.name != "ddpm":
      raise ValueError(
        f"model.learned_variance=True is of the steps of path.name='ddpm', but "
        f"path.name={config.path.name!r}: set it to False."
      )

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only diffusion has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="dit_s_2"))
    config.data = visual.default_config()
    config.path = ml_collections.ConfigDict(
      dict(
        name="ddpm",  # Or "flow", which has no schedule and no steps.
        prediction="noise",  # Or "velocity", or "clean".
        schedule="linear",
        steps=1000,
        # What times are drawn from in training: "uniform", or "logit_normal",
        # the logistic function of a normal distribution (arXiv 2403.03206).
        times="uniform",
      )
    )
    # How often an example is learned without its class or text.
    config.condition_dropout = 0.1
    config.sampling = ml_collections.ConfigDict(
      dict(steps=25, guidance=1.5, solver="ddim")
    )
    # What `eval.py` makes and measures; see `tasks.diffusion_evaluation`.
    config.evaluation = ml_collections.ConfigDict(
      dict(num_samples=500, features="", statistics="")
    )
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="loss"))
    return config

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Draws what a training batch is to be learned with.

    Args:
      key: randomness of all that is drawn.
      batch: as `batch_spec` says.

    Returns:
      x and noise [batch, *shape, channels]; time [batch]; label, or text and
      text_length, some of them as if there was none; mask and damaged [batch].
    """
    drop_key, key = jax.random.split(key)
    rows = len(batch["mask"])
    drop = jax.random.bernoulli(
      drop_key, self.config.condition_dropout, (rows,)
    )
    return self._prepare(jax.random.split(key, rows), batch, drop)

  def _prepare(self, keys: jax.Array, batch: Batch, drop: jax.Array) -> Batch:
    """Prepares examples by their keys [batch]; `drop` bool [batch]."""
    latent_keys, time_keys, noise_keys = jax.vmap(
      lambda key: jax.random.split(key, 3), out_axes=1
    )(keys)
    mask = batch["mask"]
    x = visual_batches.clean(self.info, latent_keys, batch)
    # Zeros where nothing counts, as NaN times a gradient of 0 is NaN.
    x = jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)) > 0, x, 0)
    draw = lambda key: jax.random.normal(key, x.shape[1:])
    num_classes = getattr(self.model, "num_classes", 0)
    return {
      "x": x,
      "noise": jax.vmap(draw)(noise_keys),
      "time": jax.vmap(self._time)(time_keys),
      **visual_batches.condition(self.info, num_classes, batch, drop),
      "mask": mask,
      "damaged": batch.get("damaged", jnp.zeros(mask.shape, bool)),
    }

  def _time(self, key: jax.Array) -> jax.Array:
    """Draws a time, as the model is fed it; a step of DDPM is a whole one."""
    path = self.config.path
    if path.times == "uniform":
      share = jax.random.uniform(key)
    else:
      share = jax.nn.sigmoid(jax.random.normal(key))
    if path.name == "flow":
      return 1000 * share
    return jnp.minimum(jnp.floor(path.steps * share), path.steps - 1)

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over examples, each at its own time and with its class."""
    fold = lambda index: jax.random.fold_in(jax.random.key(0), index)
    keys = jax.vmap(fold)(batch["index"])
    nobody = jnp.zeros(len(keys), bool)
    return self.sums(variables, self._prepare(keys, batch, nobody))

  def losses(self, variables: Variables, batch: Batch) -> jax.Array:
    """The loss of each example of a prepared batch, float32 [batch].

    A model with `loss_targets` predicts several arrays, each with a weight of
    its own, and one with a learned variance has the variational bound besides.
    """
    x, noise, time = batch["x"], batch["noise"], batch["time"]
    noisy = self.path.add_noise(x, noise, time)
    target = self.path.target(x, noise, time)
    outputs = self.predict(variables, batch, noisy)
    if hasattr(self.model, "loss_targets"):
      pairs = zip(outputs, self.model.loss_targets(target), strict=True)
      return sum(
        weight * _mean_square(output - wanted)
        for output, (wanted, weight) in pairs
      )
    prediction = outputs[..., : x.shape[-1]]
    losses = _mean_square(prediction - target)
    if self._learned_variance:
      variance = outputs[..., x.shape[-1] :]
      losses += variational_bound.bits(
        x, noisy, time, prediction, variance, self.path
      )
    return losses

  def predict(
    self, variables: Variables, batch: Batch, noisy: jax.Array
  ) -> Any:
    """What the model makes of noisy examples of a prepared batch."""
    names = ("label", "text", "text_length")
    method = "predictions" if hasattr(self.model, "loss_targets") else None
    return self.model.apply(
      variables,
      noisy,
      batch["time"],
      **{name: batch[name] for name in names if name in batch},
      train=True,
      method=method,
    )

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[evaluation.Evaluation],
    workdir: str,
  ) -> Shown:
    """Draws samples of some classes or texts, and how they came or move."""
    del evaluations
    folder = storage.path(workdir)
    log = io.StringIO()
    files = "samples.png", "samples.gif"
    out, animation = (str(folder / name) for name in files)
    self.sample(variables, out=out, animation=animation, output=log)
    of_run = f"--weights={storage.quote(folder)}"
    return Shown(
      files=files,
      text=log.getvalue(),
      commands=(f"python sample.py {of_run}", f"python eval.py {of_run}"),
    )

  def sample(self, variables: Variables, **options: Any) -> None:
    """Writes pictures of samples; see `diffusion_sampling.OPTIONS`."""
    diffusion_sampling.draw(
      self.model,
      variables,
      self.path,
      image_decoding.create(self.model, variables, self.info),
      sampling=self.config.sampling,
      **{"text": self.config.data.text, **options},
    )


def create_path(config: ml_collections.ConfigDict) -> Path:
  """The path that `config.path` names.

  Raises:
    ValueError: for a field that does not fit.
  """
  if config.name == "flow":
    return generation.flow(config.prediction)
  return generation.ddpm(
    config.schedule, config.steps, prediction=config.prediction
  )


def _fields_of_data(
  config: ml_collections.ConfigDict, info: Any
) -> dict[str, Any]:
  """The fields of the model that the data give, of those that it has."""
  *sides, channels = info.latent_shape or info.image_shape
  fields = {
    "sample_shape": tuple(sides),
    "channels": channels,
    "num_classes": 0 if info.text_shape else len(info.class_names),
    "label_tokens": info.labels,
    "text_width": info.text_shape[1] if info.text_shape else 0,
  }
  name = config.model.name
  known = models.fields(name)
  for field, none in (("label_tokens", 1), ("text_width", 0)):
    missing = field not in known and fields[field] != none
    if missing and models.kind(name) == "diffusion":
      raise ValueError(
        f"model.name={name!r} has no {field}, but the data of data.name="
        f"{config.data.name!r} need {fields[field]}."
      )
  return {field: value for field, value in fields.items() if field in known}


def _mean_square(error: jax.Array) -> jax.Array:
  return jnp.square(error).mean(range(1, error.ndim))
