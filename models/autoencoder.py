"""The KL autoencoder of latent diffusion: images to latents and back.

Rombach et al. 2022 (arXiv 2112.10752), as MAR and SDXL have it. Latents are
Gaussians (`models.gaussian_latents`).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import gaussian_latents, layers, normalization, taps
from models.autoencoder_layers import (
  Decoder,
  Encoder,
  ResidualBlock,
  SpatialAttention,
)

KIND = "autoencoder"
# As the authors' code clips the logarithms of variances.
LOG_VARIANCES = (-30.0, 20.0)


class Autoencoder(taps.Tapped):
  """Convolutional, with a Gaussian for each latent.

  With `model.apply(variables, ..., method=...)`:

      moments = "encode"(images)
      images = "decode"(latents)

  Attributes:
    channels: channels of an image.
    width: channels of a level with the multiplier 1.
    multipliers: of each level; from one to the next images are halved.
    blocks: residual blocks of an encoder's level; the decoder has one more.
    latent_channels: channels of the latents.
    attention_levels: levels, from 0, whose blocks have attention behind them.
      There is one between encoder's and decoder's middle blocks anyway.
    groups: groups of channels of each normalisation.
    epsilon: added to their variances.
    quant_convolutions: whether a dense layer follows the encoder and another
      precedes the decoder, which the authors call quant and post_quant.
    scaling_factor: what latents minus `shift` are multiplied by to have about
      deviation 1, as generators take them; see `scale`.
    shift: of latents.
    remat: whether the backward pass computes each residual block again instead
      of keeping its activations.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    dtype: dtype of the computation; statistics, attention's softmax, moments
      and images are float32.
    param_dtype: dtype of the parameters.
  """

  channels: int = 3
  width: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks: int = 2
  latent_channels: int = 4
  attention_levels: tuple[int, ...] = ()
  groups: int = 32
  epsilon: float = 1e-6
  quant_convolutions: bool = True
  scaling_factor: float = 1.0
  shift: float = 0.0
  remat: bool = False
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  def setup(self):
    _check_fields(self)
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    norm = functools.partial(
      normalization.GroupNorm, self.groups, epsilon=self.epsilon, **dtypes
    )
    block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
    shared = {
      "widths": tuple(self.width * m for m in self.multipliers),
      "attention_levels": tuple(self.attention_levels),
      "block": functools.partial(block, norm=norm, **dtypes),
      "attention": functools.partial(
        SpatialAttention, norm, self.implementation, **dtypes
      ),
      "norm": norm,
      **dtypes,
    }
    moments = 2 * self.latent_channels
    self.encoder = Encoder(depth=self.blocks, channels=moments, **shared)
    self.decoder = Decoder(
      depth=self.blocks + 1, channels=self.channels, **shared
    )
    if self.quant_convolutions:
      self.quant = layers.Dense(moments, **dtypes)
      self.post_quant = layers.Dense(self.latent_channels, **dtypes)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns what is left of images that went through their mean latents."""
    moments = self.encode(images)
    return self.decode(gaussian_latents.mean_and_log_variance(moments)[0])

  def encode(self, images: jax.Array) -> jax.Array:
    """Maps images to the moments of their latents.

    Args:
      images: [batch, height, width, channels], from -1 to 1; both sides are
        multiples of `size_multiple`.

    Returns:
      float32 [batch, height / size_multiple, width / size_multiple, 2 *
      latent_channels]: means, then logarithms of variances, from -30 to 20.

    Raises:
      ValueError: for another shape or dtype.
    """
    layers.check_images(images)
    multiple = self.size_multiple
    if images.shape[1] % multiple or images.shape[2] % multiple:
      raise ValueError(
        f"images have shape {images.shape}; this autoencoder halves "
        f"{len(self.multipliers) - 1} times, so height and width must be "
        f"multiples of {multiple}"
      )
    _check_channels("images", images, self.channels)
    x = self.encoder(images.astype(self.dtype))
    if self.quant_convolutions:
      x = self.quant(x)
    mean, log_variance = gaussian_latents.mean_and_log_variance(
      x.astype(jnp.float32)
    )
    log_variance = jnp.clip(log_variance, *LOG_VARIANCES)
    return jnp.concatenate([mean, log_variance], axis=-1)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Maps latents to images.

    Args:
      latents: [batch, h, w, latent_channels], as `encode` has their moments:
        not scaled.

    Returns:
      float32 [batch, h * size_multiple, w * size_multiple, channels]; black is
      -1 and white is 1, and values may lie beyond.

    Raises:
      ValueError: for another shape or dtype.
    """
    layers.check_images(latents)
    _check_channels("latents", latents, self.latent_channels)
    x = latents.astype(self.dtype)
    if self.quant_convolutions:
      x = self.post_quant(x)
    return self.decoder(x).astype(jnp.float32)

  @nn.nowrap
  def scale(self, latents: jax.Array) -> jax.Array:
    """Returns latents as generators take them."""
    return (latents - self.shift) * self.scaling_factor

  @nn.nowrap
  def unscale(self, latents: jax.Array) -> jax.Array:
    """The inverse of `scale`."""
    return latents / self.scaling_factor + self.shift

  @property
  def size_multiple(self) -> int:
    """How many pixels a latent stands for along a side."""
    return 2 ** (len(self.multipliers) - 1)

  @nn.nowrap
  def example_inputs(self) -> dict[str, jax.Array]:
    """Returns arguments of the call, of one image, to initialise with."""
    side = self.size_multiple
    return {"images": jnp.zeros((1, side, side, self.channels))}


def _check_channels(name: str, x: jax.Array, channels: int) -> None:
  if x.shape[-1] != channels:
    raise ValueError(
      f"{name} have shape {x.shape}; the model needs {channels} channels"
    )


def _check_fields(model: Autoencoder) -> None:
  """Raises ValueError for fields that do not fit."""
  for field in ("channels", "width", "blocks", "latent_channels", "groups"):
    if getattr(model, field) < 1:
      raise ValueError(
        f"{field} is {getattr(model, field)}; it must be 1 or more"
      )
  levels = len(model.multipliers)
  if not levels or min(model.multipliers) < 1:
    raise ValueError(
      f"multipliers are {model.multipliers}; there must be one or more, each 1 "
      "or more"
    )
  if not set(model.attention_levels) <= set(range(levels)):
    raise ValueError(
      f"attention_levels are {model.attention_levels}; the levels of "
      f"multipliers={model.multipliers} are 0 to {levels - 1}"
    )
  if model.width % model.groups:
    raise ValueError(
      f"groups is {model.groups}; it must divide width={model.width}"
    )
  if model.scaling_factor <= 0:
    raise ValueError(
      f"scaling_factor is {model.scaling_factor}; it must be above 0"
    )


VARIANTS = {
  # Of MAR (arXiv 2406.11838): 16 x 16 latents of 256 x 256 pixels.
  "autoencoder_kl16": (
    Autoencoder,
    {
      "multipliers": (1, 1, 2, 2, 4),
      "latent_channels": 16,
      "attention_levels": (4,),
      "scaling_factor": 0.2325,
    },
  ),
  # Of Stable Diffusion XL (arXiv 2307.01952): 32 x 32 of 256 x 256 pixels.
  "autoencoder_sdxl": (Autoencoder, {"scaling_factor": 0.13025}),
  # Ours, for images of 8 x 8 pixels: 4 x 4 latents.
  "autoencoder_digits": (
    Autoencoder,
    {
      "channels": 1,
      "width": 32,
      "multipliers": (1, 2),
      "blocks": 1,
      "latent_channels": 2,
      "groups": 8,
    },
  ),
}
