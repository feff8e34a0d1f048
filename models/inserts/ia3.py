"""IA3: a learned factor for each feature of a layer (arXiv 2205.05638)."""

import flax.linen as nn
import jax

from models import registry
from models.insertion import Insert, Site
from models.inserts import features

SIDES = ("input", "output")


class IA3(Insert):
  """Multiplies what a layer gives, or what it is given, with "scale".

  The paper's places are the outputs of keys and values, and the input of the
  second layer of a feed-forward network.

  Attributes:
    side: "output" or "input".
  """

  side: str = "output"

  def before(self, site: Site, x: jax.Array) -> jax.Array:
    """Multiplies what the layer is given, if that is the side.

    Raises:
      ValueError: for an unknown side.
    """
    if self.side not in SIDES:
      raise registry.unknown("side of ia3", self.side, SIDES)
    if self.side == "output":
      return x
    return self._scaled(site, x, features.shape_of_input(site.module, x))

  def after(self, site: Site, x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies what the layer gives, if that is the side.

    Raises:
      ValueError: for a layer that gives several arrays.
    """
    if self.side == "input":
      return y
    features.check_array(y, "ia3", site.place)
    return self._scaled(site, y, features.shape_of_output(site.module, y))

  @nn.compact
  def _scaled(self, site, x, shape):
    scale = self.param(
      "scale", nn.initializers.ones, shape, features.param_dtype(site.module)
    )
    return x * features.per_feature(scale, x).astype(x.dtype)
