"""A bias for layers that have none; those that have one need no insert."""

import flax.linen as nn
import jax

from models.insertion import Insert, Site
from models.inserts import features


class Shift(Insert):
  """Adds "bias", which begins with zeros, to what a layer gives.

  Bias tuning (BitFit, arXiv 2106.10199) trains the biases that a model has:
  `config.trainable=("bias",)`. With this a model without biases can have it.
  """

  @nn.compact
  def after(self, site: Site, x: jax.Array, y: jax.Array) -> jax.Array:
    """Adds the bias.

    Raises:
      ValueError: for a layer that gives several arrays.
    """
    features.check_array(y, "shift", site.place)
    bias = self.param(
      "bias",
      nn.initializers.zeros,
      features.shape_of_output(site.module, y),
      features.param_dtype(site.module),
    )
    return y + features.per_feature(bias, y).astype(y.dtype)
