"""Distillation: a diffusion model's self-attention learns to be another's."""

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

from models import linfusion, taps
from tasks.base import Batch, Variables
from tasks.diffusion import Diffusion
from training import paths
from training.ranges import Number

# The collection of what the teacher has in the place of what learns.
TEACHER = "teacher"
_ORIGINAL = "original"
# The module of each block that is replaced.
_REPLACED = "attention"
_FEATURES = "mixed"


class Distillation(Diffusion):
  """Learns mixers in the place of self-attention, from the model as it was.

  LinFusion's recipe (arXiv 2409.02097). The loss of an example is that of
  `Diffusion`, with half of the mean squared error to the teacher's prediction
  and half of that to the outputs of its self-attention, behind their
  projection, as a mean over blocks. The teacher gets the same noisy example and
  goes its own way: what it gives is no input of the student. Only the replaced
  modules learn.

  Weights come from a run of `Diffusion` with self-attention, of which the
  student takes over the projections (as the paper says; those of the released
  script begin anew, which `copy_projections=False` is for), or from one of this
  task. The teacher's own are in the collection "teacher"; all else is shared.
  """

  curves = ("loss", "feature_loss")
  ranges = types.MappingProxyType(
    {
      **Diffusion.ranges,
      "distillation.output": Number(0),
      "distillation.features": Number(0),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes student and teacher.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self._check()
    self.teacher = self.model.clone(mixer="attention", mixer_options={})
    copied = config.distillation.copy_projections
    self.added = linfusion.UPDATES if copied else (_REPLACED,)

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """Those of `Diffusion`, and "distillation"."""
    config = Diffusion.default_config()
    config.distillation = ml_collections.ConfigDict(
      dict(
        output=0.5,  # What the error to the teacher's prediction counts.
        features=0.5,  # That to the outputs of its self-attention.
        copy_projections=True,  # False: they begin anew.
      )
    )
    return config

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the student, and a teacher that knows nothing."""
    student_key, key = jax.random.split(key)
    made = self.teacher.init(key, **self.teacher.example_inputs())
    return {
      **super().init(student_key),
      TEACHER: {_ORIGINAL: _replaced(made["params"])},
    }

  def received(self, variables: Variables) -> Variables:
    """Makes the self-attention of a run's model the teacher's."""
    if TEACHER in variables:
      return variables
    params = traverse_util.flatten_dict(variables["params"])
    teacher = {TEACHER: {_ORIGINAL: _replaced(variables["params"])}}
    if not self.config.distillation.copy_projections:
      params = {path: x for path, x in params.items() if not _is_replaced(path)}
    return {
      **variables,
      "params": traverse_util.unflatten_dict(params),
      **teacher,
    }

  def trainable(self) -> Callable[[str], bool]:
    """The modules in the place of self-attention."""
    return lambda name: paths.first_match((_REPLACED,), name) is not None

  def sums(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Sums of each part of the loss, too."""
    mask, weights = batch["mask"], self.config.distillation
    parts = self._parts(variables, batch)
    parts["loss"] = (
      parts["noise_loss"]
      + weights.output * parts["output_loss"]
      + weights.features * parts["feature_loss"]
    )
    return {
      "weight": mask.sum(),
      # `where`, since a padded row may be infinite and 0 * inf is NaN.
      **{
        name: jnp.where(mask > 0, losses * mask, 0).sum()
        for name, losses in parts.items()
      },
      "damaged": batch["damaged"].sum(dtype=jnp.float32),
    }

  def _parts(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """The losses of each example of a prepared batch, float32 [batch] each."""
    x, noise, time = batch["x"], batch["noise"], batch["time"]
    noisy = self.path.add_noise(x, noise, time)
    student, mixed = _read(self.model, variables["params"], batch, noisy)
    teacher, wanted = jax.lax.stop_gradient(
      _read(self.teacher, _teacher_params(variables), batch, noisy)
    )
    features = [_error(mixed[name], wanted[name]) for name in wanted]
    return {
      "noise_loss": _error(student, self.path.target(x, noise, time)),
      "output_loss": _error(student, teacher),
      "feature_loss": jnp.stack(features).mean(0),
    }

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """As `Diffusion`, and how far features are from the teacher's."""
    rest = Diffusion.describe(result)
    return f"{rest}, features off by {result['feature_loss']:.4f}"

  def _check(self) -> None:
    if getattr(self.model, "mixer", "attention") == "attention":
      raise ValueError(
        f"model.mixer={getattr(self.model, 'mixer', None)!r} is what the "
        "teacher has; distillation needs another, as 'linfusion'."
      )
    if self._learned_variance or hasattr(self.model, "loss_targets"):
      raise ValueError(
        f"model.name={self.config.model.name!r} predicts more than one array; "
        "distillation needs a model of one, with learned_variance=False."
      )
    if not self.config.init.weights:
      raise ValueError(
        "init.weights is empty; distillation needs the run of the teacher."
      )


def _read(model, params, batch, noisy):
  """Returns the prediction, and the outputs of self-attention by name."""
  names = ("label", "text", "text_length")
  return taps.read(
    model,
    {"params": params},
    noisy,
    batch["time"],
    **{name: batch[name] for name in names if name in batch},
    names=[f"*/{_FEATURES}"],
    train=True,
  )


def _error(value: jax.Array, wanted: jax.Array) -> jax.Array:
  """The mean squared error of each example, float32 [batch]."""
  error = value.astype(jnp.float32) - wanted.astype(jnp.float32)
  return jnp.square(error).mean(range(1, error.ndim))


def _teacher_params(variables: Variables) -> Variables:
  """The teacher's own where it differs, and what both share."""
  shared = traverse_util.flatten_dict(variables["params"])
  shared = {path: x for path, x in shared.items() if not _is_replaced(path)}
  own = traverse_util.flatten_dict(variables[TEACHER][_ORIGINAL])
  return traverse_util.unflatten_dict({**shared, **own})


def _replaced(params: Variables) -> Variables:
  """The parameters of the modules that are replaced."""
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict(
    {path: x for path, x in flat.items() if _is_replaced(path)}
  )


def _is_replaced(path: tuple[str, ...]) -> bool:
  return _REPLACED in path
