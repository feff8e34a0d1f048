"""A trained diffusion model, as studies draw from it and judge samples."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

import experiment
from configs import diffusion
from experiment.weights import load_weights
from tasks import diffusion_evaluation, diffusion_sampling, image_decoding
from tools import study

# Variants of configs/diffusion.py that are trained for studies.
SUBJECTS = ("digits", "moving_digits")


class Subject:
  """A trained model: what it makes, by any method, and how good that is.

  Attributes:
    config: of its run.
    task: of the run, with `info`.
    model: that was trained.
    variables: of the model, the moving average.
    path: from data to noise.
    mesh: of the devices.
    workdir: of its run.
  """

  def __init__(self, workdir: epath.Path):
    """Loads what a run trained.

    Raises:
      ValueError: if there is no such run, or it has no weights.
    """
    self.workdir = workdir
    self.config = experiment.load_trained(str(workdir))
    setup = experiment.create_evaluation(self.config)
    with jax.set_mesh(setup.mesh):
      self.variables = load_weights(setup, str(workdir), use_ema=True)
    self.task, self.mesh = setup.task, setup.mesh
    self.model, self.path = setup.task.model, setup.task.path

  def conditions(self, count: int) -> dict[str, np.ndarray]:
    """Classes of `count` samples, as "label"; the same whatever the seed."""
    return diffusion_evaluation.conditions(self.task, count)

  def draw(
    self,
    method: str = "full",
    options: Mapping[str, Any] | None = None,
    *,
    labels: np.ndarray,
    seed: int = 0,
    steps: int = 25,
    guidance: float | None = None,
    size: Sequence[int] | None = None,
    model: Any = None,
    variables: Any = None,
    solver: str = "ddim",
  ) -> np.ndarray:
    """Makes a sample of each row of labels.

    Sample i of a seed begins with the same noise whatever the method.

    Args:
      method: a name of `generation.methods.METHODS`.
      options: of the method.
      labels: int [rows] or [rows, labels].
      seed: of the noise.
      steps: from noise to data.
      guidance: 1 for none; that of the config if None.
      size: sides of a sample; those of training if None.
      model: another than the subject's own, as one with other attention.
      variables: of that model.
      solver: a name of `generation.SOLVERS`.

    Returns:
      float32 [rows, *size, channels], data about -1 to 1.
    """
    if guidance is None:
      guidance = self.config.sampling.guidance
    with jax.set_mesh(self.mesh):
      return diffusion_sampling.samples(
        self.model if model is None else model,
        self.variables if variables is None else variables,
        self.path,
        {"label": np.asarray(labels, np.int32)},
        rows=len(labels),
        steps=steps,
        guidance=guidance,
        solver=solver,
        seed=seed,
        method=method,
        method_options=options or {},
        size=None if size is None else tuple(size),
      )

  def quality(
    self, samples: np.ndarray, labels: np.ndarray
  ) -> dict[str, float]:
    """How good samples are, seen through a classifier of ours.

    Larger ones are averaged down to the size of training first.

    Args:
      samples: as `draw` returns them.
      labels: that they were made of.

    Returns:
      accuracy and frechet, of frames if they are videos; then consistency and
      motion too, see `sample_metrics.motion`.
    """
    pixels = self._decode(jnp.asarray(shrunk(samples, self.model.sample_shape)))
    found = self._quality(np.asarray(pixels), np.asarray(labels))
    names = {
      "accuracy": "class_accuracy",
      "frechet": "frechet_distance",
      "consistency": "motion_consistency",
      "motion": "motion_amount",
    }
    return {
      new: float(found[old]) for new, old in names.items() if old in found
    }

  @functools.cached_property
  def _quality(self) -> diffusion_evaluation.Quality:
    return diffusion_evaluation.Quality(self.config.data)

  @functools.cached_property
  def _decode(self) -> Any:
    return image_decoding.create(self.model, self.variables, self.task.info)


def shrunk(samples: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Averages blocks of [rows, *sides, channels] until sides are `shape`.

  Raises:
    ValueError: if sides are no multiples of these.
  """
  sides = samples.shape[1:-1]
  if len(sides) != len(shape) or any(
    have % want for have, want in zip(sides, shape, strict=True)
  ):
    raise ValueError(
      f"samples have sides {sides}, but they must be multiples of "
      f"{tuple(shape)}."
    )
  cut = [(want, have // want) for have, want in zip(sides, shape, strict=True)]
  blocks = samples.reshape(
    len(samples), *(n for pair in cut for n in pair), samples.shape[-1]
  )
  return blocks.mean(tuple(range(2, 2 * len(cut) + 1, 2)))


def cosine_to_dense(samples: np.ndarray, dense: np.ndarray) -> float:
  """Mean cosine of samples with those of full attention, from the same noise.

  Of ink, data + 1: black is most of an image, and would make all alike.

  Args:
    samples: [rows, ...], data about -1 to 1.
    dense: likewise.
  """
  a, b = (np.reshape(x, (len(x), -1)) + 1.0 for x in (samples, dense))
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  return float(((a * b).sum(1) / norms).mean())


def config(name: str, variant: str) -> ml_collections.ConfigDict:
  """The config of a subject.

  Args:
    name: one of SUBJECTS.
    variant: "full", or "test" for one step of a very small model.
  """
  if variant == "full":
    return diffusion.get_config(name)
  small = diffusion.get_config("test" if name == "moving_digits" else name)
  small.model.update(dict(width=24, depth=1, heads=2))
  small.batch_size = 8
  small.train_for = small.evaluate_every = small.checkpoint.every = "1 steps"
  small.optimizer.warmup = "0 steps"
  small.evaluation.num_samples = 0
  return small


def trained(name: str, variant: str, folder: epath.Path) -> Subject:
  """Trains a subject, or has it already.

  Args:
    name: one of SUBJECTS.
    variant: see `config`.
    folder: of runs; this one is that of its config's digest.
  """
  chosen = config(name, variant)
  workdir = folder / f"{name}_{study.digest(chosen)}"
  study.train(chosen, str(workdir), show=False)
  return Subject(workdir)
