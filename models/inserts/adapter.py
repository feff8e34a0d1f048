"""A bottleneck of two dense layers beside or behind a layer."""

import flax.linen as nn
import jax

from models import layers, registry
from models.insertion import Insert, Site
from models.inserts import features

PLACES = ("beside", "behind")
ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu}


class Adapter(Insert):
  """Adds up(activation(down(.))) to what a layer gives.

  Behind a layer it reads what that gives (arXiv 1902.00751); beside one, what
  it is given, as the adapters of feed-forward layers of p-Adapter do (arXiv
  2312.10613, width 96 of 768 and ReLU).

  Attributes:
    width: channels between the two.
    place: "beside" or "behind".
    activation: a key of ACTIVATIONS.
    zero_init: whether `up` begins with zeros, so that the model is the old one
      at first.
  """

  width: int = 16
  place: str = "beside"
  activation: str = "relu"
  zero_init: bool = True

  @nn.compact
  def after(self, site: Site, x: jax.Array, y: jax.Array) -> jax.Array:
    """Adds to what the layer gives.

    Raises:
      ValueError: for an unknown option, a width below 1, or a layer that gives
        several arrays.
    """
    if self.width < 1:
      raise ValueError(f"width is {self.width}; an adapter needs at least 1")
    if self.place not in PLACES:
      raise registry.unknown("place of adapter", self.place, PLACES)
    if self.activation not in ACTIVATIONS:
      raise registry.unknown("activation", self.activation, ACTIVATIONS)
    features.check_array(y, "adapter", site.place)
    dtypes = {
      "dtype": y.dtype,
      "param_dtype": features.param_dtype(site.module),
    }
    read = x if self.place == "beside" else y
    hidden = layers.Dense(self.width, name="down", **dtypes)(read)
    zeros = {"kernel_init": nn.initializers.zeros} if self.zero_init else {}
    up = layers.Dense(y.shape[-1], name="up", **zeros, **dtypes)
    return y + up(ACTIVATIONS[self.activation](hidden))
