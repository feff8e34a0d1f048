"""Autoencoding: images through few latents and back."""

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import storage
from input_pipeline import images as image_data
from models import gaussian_latents
from tasks import image_decoding, image_grids, predictions
from tasks.base import Batch, Shown, Task, Variables, create_model
from training import evaluation
from training.ranges import Number, OneOf

# Errors of a value, by the name that `config.loss.reconstruction` has.
RECONSTRUCTIONS = types.MappingProxyType({"l1": jnp.abs, "l2": jnp.square})
# Of images that come back as they were.
_BEST_PSNR = 100.0
# Pairs of an image and its reconstruction, in a row of the picture.
_PAIRS = 6


class Autoencoding(Task):
  """Trains an autoencoder (`models.autoencoder`) to give images back.

  The loss of an image is the mean error of its values, which are from -1 to 1,
  plus `loss.kl_weight` times the nats of all its latents per value. That is
  latent diffusion's (arXiv 2112.10752) divided by the number of values, so that
  weights are the same as there and do not depend on the size of images; but
  without its perceptual and adversarial terms.

  In training latents are drawn, in evaluation they are the means. Sums are over
  images with mask 1; labels do not matter.
  """

  room = image_data
  unit = "image"
  directions = types.MappingProxyType(
    {"loss": "min", "psnr": "max", "reconstruction": "min"}
  )
  counts = ("damaged",)
  progress = types.MappingProxyType({"loss": ".4f", "kl": ".1f"})
  curves = ("loss", "kl")
  given = ("dtype", "channels")
  ranges = types.MappingProxyType(
    {
      "loss.reconstruction": OneOf(tuple(RECONSTRUCTIONS)),
      "loss.kl_weight": Number(0),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self.model = create_model(
      config, "autoencoder", channels=config.data.channels
    )
    size, multiple = config.data.image_size, self.model.size_multiple
    if size % multiple:
      raise ValueError(
        f"data.image_size={size} must be a multiple of {multiple}, the pixels "
        f"that a latent of model.name={config.model.name!r} stands for along a "
        "side."
      )

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only autoencoding has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="autoencoder_kl16"))
    config.data = image_data.default_config()
    config.loss = ml_collections.ConfigDict(
      # Of latent diffusion.
      dict(reconstruction="l1", kl_weight=1e-6)
    )
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="loss"))
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """image uint8 [rows, height, width, channels], mask and damaged [rows]."""
    del train
    data = self.config.data
    image = (rows, data.image_size, data.image_size, data.channels)
    return {
      "image": jax.ShapeDtypeStruct(image, jnp.uint8),
      "mask": jax.ShapeDtypeStruct((rows,), jnp.float32),
      "damaged": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    }

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    return self.model.init(key, **self.model.example_inputs())

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Makes float32 images from -1 to 1, and noise [rows, h, w, channels]."""
    data, model = self.config.data, self.model
    side = data.image_size // model.size_multiple
    shape = (len(batch["image"]), side, side, model.latent_channels)
    # Here, so that micro-batches change no draw.
    images = _to_unit(batch["image"])
    return {**batch, "image": images, "noise": jax.random.normal(key, shape)}

  def weight(self, batch: Batch) -> jax.Array:
    """How many images count."""
    return batch["mask"].sum()

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """Summed loss of a prepared (micro-)batch; no collection changes."""
    del key
    moments = self._encode(variables, batch)
    latents = gaussian_latents.from_noise(moments, batch["noise"])
    sums = self._sums(batch, moments, self._decode(variables, latents))
    collections = {n: x for n, x in variables.items() if n != "params"}
    return sums["loss"], (collections, sums)

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over the images with mask 1, of reconstructions of mean latents.

    Returns:
      weight, damaged, loss, reconstruction and kl as in training;
      squared_error, the mean over values of uint8 images, of which 255^2 is 1;
      and of latents as they would be drawn, the expected mean and square.
    """
    pixels = batch["image"]
    batch = {**batch, "image": _to_unit(pixels)}
    moments = self._encode(variables, batch)
    mean, log_variance = gaussian_latents.mean_and_log_variance(moments)
    images = self._decode(variables, mean)
    error = image_decoding.to_pixels(images).astype(jnp.float32) - pixels
    means = lambda x: x.mean((1, 2, 3))
    return self._sums(batch, moments, images) | {
      "squared_error": _masked(batch, means(jnp.square(error / 255))),
      "latent_mean": _masked(batch, means(mean)),
      "latent_square": _masked(
        batch, means(jnp.square(mean) + jnp.exp(log_variance))
      ),
    }

  def _encode(self, variables: Variables, batch: Batch) -> jax.Array:
    return self.model.apply(variables, batch["image"], method="encode")

  def _decode(self, variables: Variables, latents: jax.Array) -> jax.Array:
    return self.model.apply(variables, latents, method="decode")

  def _sums(
    self, batch: Batch, moments: jax.Array, images: jax.Array
  ) -> dict[str, jax.Array]:
    """What training and evaluation have in common."""
    loss = self.config.loss
    measure = RECONSTRUCTIONS[loss.reconstruction]
    reconstruction = measure(images - batch["image"]).mean((1, 2, 3))
    kl = gaussian_latents.kl(moments)
    values = math.prod(images.shape[1:])
    return {
      "weight": self.weight(batch),
      "damaged": batch["damaged"].sum(dtype=jnp.float32),
      "loss": _masked(batch, reconstruction + loss.kl_weight * kl / values),
      "reconstruction": _masked(batch, reconstruction),
      "kl": _masked(batch, kl),
    }

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means; psnr, of the mean squared error of the whole split; and latents.

    The peak signal-to-noise ratio is in decibels and at most 100.

    Raises:
      ValueError: if no image was usable.
    """
    result = super().summarize(totals)
    error = max(result.pop("squared_error"), 10 ** (-_BEST_PSNR / 10))
    variance = result.pop("latent_square") - result["latent_mean"] ** 2
    return result | {
      "psnr": -10 * math.log10(error),
      "latent_deviation": math.sqrt(max(variance, 0.0)),
      "examples": int(totals["weight"]),
    }

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "PSNR 28.31 dB, loss 0.0312, KL 55.2 nats on 360 images"."""
    damaged = result["damaged"]
    return (
      f"PSNR {result['psnr']:.2f} dB, loss {result['loss']:.4f}, KL "
      f"{result['kl']:.1f} nats on {result['examples']} images"
      + (f", {damaged} damaged ones left out" if damaged else "")
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """examples, psnr, loss, reconstruction, kl, and of latents two."""
    names = "examples psnr loss reconstruction kl latent_mean latent_deviation"
    return {name: result[name] for name in names.split()}

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[evaluation.SplitEvaluation],
    workdir: str,
  ) -> Shown:
    """Draws images, each beside what came back, into reconstructions.png."""
    images, _ = predictions.first_examples(evaluations[0].batches)
    back = np.asarray(jax.jit(self.reconstruct)(variables, images))
    pairs = np.stack([images, back], 1)  # [images, 2, height, width, channels]
    rows = -(-len(pairs) // _PAIRS)
    missing = rows * _PAIRS - len(pairs)
    filled = np.pad(pairs, [(0, missing)] + [(0, 0)] * 4, constant_values=255)
    table = filled.reshape(rows, 2 * _PAIRS, *images.shape[1:])
    path = storage.path(workdir) / "reconstructions.png"
    picture = image_grids.encode([image_grids.grid(table)], ".png")
    storage.write_whole(path, picture)
    return Shown(files=(path.name,))

  def reconstruct(self, variables: Variables, images: jax.Array) -> jax.Array:
    """What comes back of uint8 images through their mean latents, uint8."""
    return image_decoding.to_pixels(
      self.model.apply(variables, _to_unit(images))
    )


def _to_unit(images: jax.Array) -> jax.Array:
  """uint8 images to float32 from -1 to 1."""
  return images.astype(jnp.float32) / 127.5 - 1


def _masked(batch: Batch, values: jax.Array) -> jax.Array:
  """The sum over images [rows] that count."""
  # `where`, since those that do not may be infinite and 0 * inf is NaN.
  return jnp.where(batch["mask"] > 0, values * batch["mask"], 0).sum()
