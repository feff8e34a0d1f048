"""From what a generator makes to pixels, directly or by an autoencoder."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from models import decoding
from tasks import autoencoders

# Makes uint8 images [batch, height, width, channels] of what a model makes:
# tokens [batch, N, token_dim], if it can `unpatchify`, or arrays of pixels or
# latents.
Decode = Callable[[jax.Array], jax.Array]


def create(model: nn.Module, variables: Mapping[str, Any], info: Any) -> Decode:
  """Returns what makes images of the tokens or arrays of a model.

  Args:
    model: with `unpatchify`, if it makes tokens.
    variables: of the model, on whose mesh images are decoded too.
    info: of the data that it learned; an `input_pipeline.latents.DatasetInfo`.

  Raises:
    ValueError: if the autoencoder of its latents is not there, or is another.
    CheckpointError: if its checkpoint cannot be read.
  """
  unpatchify = getattr(model, "unpatchify", lambda x: x)
  if info.latent_shape is None:
    return jax.jit(lambda tokens: to_pixels(unpatchify(tokens)))
  trained = autoencoders.load(info.autoencoder, fingerprint=info.fingerprint)
  weights = trained.variables
  if (mesh := decoding.mesh_of(variables)) is not None:
    weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))

  @jax.jit
  def decode(weights, tokens):
    latents = unpatchify(tokens) / info.scale
    return to_pixels(trained.model.apply(weights, latents, method="decode"))

  return functools.partial(decode, weights)


def to_pixels(x: jax.Array) -> jax.Array:
  """Maps -1 to 0 and 1 to 255, to the nearest; what is beyond is cut off."""
  return jnp.round(jnp.clip((x + 1) * 127.5, 0, 255)).astype(jnp.uint8)
