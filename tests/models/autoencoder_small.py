"""An autoencoder small enough for tests, with attention wherever there can be.

Levels differ in width and in whether they have attention, so that none can be
taken for another.
"""

import functools

import jax

from models import autoencoder
from tests import parity_helper

SMALL = {
  "channels": 2,
  "width": 8,
  "multipliers": (1, 3),
  "blocks": 1,
  "latent_channels": 3,
  "encoder_attention": (1,),
  "decoder_attention": (0,),
  "groups": 4,
  "implementation": "xla",
}


def shapes(model):
  """Shapes of the variables of a model."""
  init = functools.partial(model.init, **model.example_inputs())
  return jax.eval_shape(init, jax.random.key(0))


def model(**fields):
  return autoencoder.Autoencoder(**{**SMALL, **fields})


@functools.cache
def model_and_variables(**fields):
  made = model(**fields)
  return made, parity_helper.randomise(shapes(made), 0)
