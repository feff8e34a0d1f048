"""Restoration: degraded images to clean ones, maybe larger."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import storage
from input_pipeline import restoration
from models import span
from sample_metrics import pictures
from tasks import (
  image_grids,
  image_restoring,
  restoration_evaluation,
  whole_images,
)
from tasks.base import (
  Batch,
  Progress,
  Shown,
  Task,
  Variables,
  apply_in_training,
  create_model,
)
from tasks.restoration_evaluation import BASELINE, MEASURES, WholeImages
from training.ranges import Number, OneOf

LOSSES = ("l1", "charbonnier")
# Images that are shown when training ends, and the side of what is seen.
_SHOWN, _SIDE = 4, 128


class Restoration(Task):
  """Trains a network of kind "restoration" on pairs of patches.

  The loss of a pair is the mean over its values, which are from 0 to 1, of |d|
  ("l1") or of sqrt(d^2 + epsilon^2) ("charbonnier", as in LapSRN, 1704.03915,
  and MPRNet, 2102.02808). Sums are over pairs.

  Evaluation restores whole images (`tasks.restoration_evaluation`), as
  `config.evaluation` says, and measures as the papers do: PSNR and SSIM of
  8-bit images on Y and on RGB.
  """

  room = restoration
  unit = "image"
  directions = types.MappingProxyType(
    {**dict.fromkeys(MEASURES, "max"), "loss": "min"}
  )
  curves = ("loss", "psnr_y", "psnr_rgb")
  ranges = types.MappingProxyType(
    {
      "loss.name": OneOf(LOSSES),
      "loss.epsilon": Number(0, above=True),
      "evaluation.tile": Number(0, whole=True),
      "evaluation.overlap": Number(0, whole=True),
    }
  )
  evaluate_options = types.MappingProxyType(
    {
      **whole_images.OPTIONS,
      "per_image": ("", "A CSV file to write, with a row for each image."),
    }
  )
  sample_options = types.MappingProxyType(image_restoring.OPTIONS)

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self.model = create_model(config, "restoration")
    scale, patch = config.data.scale, config.data.patch_size
    if scale != self.model.scale:
      raise ValueError(
        f"data.scale={scale} must be {self.model.scale}, by which "
        f"model.name={config.model.name!r} enlarges images."
      )
    if patch % self.model.size_multiple:
      raise ValueError(
        f"data.patch_size={patch} must be a multiple of "
        f"{self.model.size_multiple}, as model.name={config.model.name!r} "
        "needs."
      )

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only restoration has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="span_c48_x4"))
    config.data = restoration.default_config()
    # MPRNet's epsilon (2102.02808, section 3).
    config.loss = ml_collections.ConfigDict(dict(name="l1", epsilon=1e-3))
    # How whole images are restored; see `whole_images.OPTIONS`. Tiles at a
    # time: `eval_batch_size`.
    options = {name: value for name, (value, _) in whole_images.OPTIONS.items()}
    # Whether restored images are rounded to 8 bits before they are measured, as
    # in papers on super-resolution; those on all-in-one restoration do not.
    config.evaluation = ml_collections.ConfigDict({**options, "rounded": True})
    config.eval_batch_size = 8
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="psnr_y"))
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """degraded and clean, uint8 [rows, side, side, 3] of patches."""
    del train
    side, scale = self.config.data.patch_size, self.config.data.scale
    return {
      name: jax.ShapeDtypeStruct((rows, n, n, 3), jnp.uint8)
      for name, n in (("degraded", side), ("clean", scale * side))
    }

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    side = self.model.size_multiple
    return self.model.init(key, jnp.zeros((1, side, side, 3)))

  def received(self, variables: Variables) -> Variables:
    """Folds SPAN's convolutions, if only the model has them folded."""
    deploys = isinstance(self.model, span.Span) and self.model.form == "deploy"
    if not deploys or "kernel" in variables["params"].get("conv_1", {}):
      return variables
    return {**variables, "params": jax.jit(span.fold)(variables["params"])}

  def weight(self, batch: Batch) -> jax.Array:
    """How many pairs there are."""
    return jnp.float32(len(batch["degraded"]))

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed loss of pairs, and collections as they move."""
    degraded = whole_images.to_unit(batch["degraded"])
    restored, collections = apply_in_training(
      self.model, variables, degraded, rngs={"dropout": key}
    )
    sums = self._sums(restored, batch)
    return sums["loss"], (collections, sums)

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over pairs of patches: weight and loss."""
    degraded = whole_images.to_unit(batch["degraded"])
    return self._sums(self.model.apply(variables, degraded, train=False), batch)

  def _sums(self, restored, batch):
    error = self.error(restored - whole_images.to_unit(batch["clean"]))
    loss = error.mean((1, 2, 3)).sum()
    return {"weight": self.weight(batch), "loss": loss}

  def error(self, difference: Any) -> Any:
    """The loss of each value, of arrays of JAX or of NumPy."""
    if self.config.loss.name == "l1":
      return abs(difference)
    return (difference**2 + self.config.loss.epsilon**2) ** 0.5

  def evaluations(self, mesh: jax.sharding.Mesh) -> Sequence[WholeImages]:
    """Whole images, as `config.evaluation` says."""
    return [self.whole_images(mesh)]

  def whole_images(
    self, mesh: jax.sharding.Mesh, **options: Any
  ) -> WholeImages:
    """The evaluation of whole images.

    Args:
      mesh: the device mesh.
      **options: of `whole_images.OPTIONS`, in place of those of the config.
    """
    options = {**self.config.evaluation.to_dict(), **options}
    side = options["tile"] or self.config.data.patch_size
    return WholeImages(
      self.model,
      self.config.data,
      mesh,
      error=self.error,
      shape=(self.config.eval_batch_size, side, side),
      count=self.info.num_eval_examples,
      batch_size=self.config.eval_batch_size,
      **options,
    )

  def evaluate(
    self,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    progress: Progress,
    *,
    per_image: str = "",
    **options: Any,
  ) -> dict[str, Any]:
    """Evaluates whole images, and writes a table of them."""
    rows = self.whole_images(mesh, **options).rows(variables, progress=progress)
    if per_image and jax.process_index() == 0:
      restoration_evaluation.write_table(per_image, rows)
    return restoration_evaluation.summarize(rows)

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "PSNR 31.75 dB, SSIM 0.8901 on Y (unrestored 28.43, 0.8109), ..."."""
    own, plain = (
      "{:.2f} dB, SSIM {:.4f}".format(
        *(result[f"{prefix}{name}"] for name in ("psnr_y", "ssim_y"))
      )
      for prefix in ("", BASELINE)
    )
    return (
      f"PSNR {own} on Y (unrestored {plain}), {result['psnr_rgb']:.2f} dB, "
      f"SSIM {result['ssim_rgb']:.4f} on RGB, of {result['images']} images"
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """psnr_y, ssim_y, psnr_rgb, ssim_rgb, loss, the baseline's, and images."""
    return dict(result)

  @classmethod
  def sampling_info(
    cls, config: ml_collections.ConfigDict
  ) -> restoration.DatasetInfo:
    """No pairs: restoring needs no data but what it is given."""
    data = config.data
    return restoration.DatasetInfo(0, data.scale, data.patch_size, ())

  def sample(self, variables: Variables, **options: Any) -> None:
    """Restores the images that a person gives; see `image_restoring`."""
    chosen = {
      name: options.pop(name, self.config.evaluation[name])
      for name in whole_images.OPTIONS
    }
    restorer = whole_images.ImageRestorer(
      self.model,
      variables,
      batch_size=self.config.eval_batch_size,
      **chosen,
    )
    image_restoring.restore(restorer, **options)

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[WholeImages],
    workdir: str,
  ) -> Shown:
    """Draws the middle of some images, before, after and true: restored.png."""
    restore = evaluations[0].restorer(variables)
    pairs = [
      pair
      for pair, _ in zip(
        restoration.eval_pairs(self.config.data), range(_SHOWN), strict=False
      )
    ]
    rows = [_compared(pair, restore) for pair in pairs]
    path = storage.path(workdir) / "restored.png"
    image_restoring.write(path, image_grids.grid(np.stack(rows)))
    return Shown(
      files=(path.name,),
      commands=(
        f"python sample.py --weights={storage.quote(workdir)} "
        "--input=<image or folder> --out=<.png or folder>",
      ),
    )


def _compared(
  pair: restoration.Pair, restore: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """The middle of an image, [3, side, side, 3]: degraded, restored, clean."""
  restored = pictures.to_bytes(restore(pair.degraded))
  scale = len(pair.clean) // len(pair.degraded)
  enlarged = pair.degraded.repeat(scale, 0).repeat(scale, 1)
  return np.stack([_middle(x) for x in (enlarged, restored, pair.clean)])


def _middle(image: np.ndarray) -> np.ndarray:
  """The middle [_SIDE, _SIDE, 3] of an image, with white around small ones."""
  short = [max(_SIDE - n, 0) for n in image.shape[:2]]
  image = np.pad(
    image,
    [(n // 2, n - n // 2) for n in short] + [(0, 0)],
    constant_values=255,
  )
  top, left = ((n - _SIDE) // 2 for n in image.shape[:2])
  return image[top : top + _SIDE, left : left + _SIDE]
