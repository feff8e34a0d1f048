"""LoRA: a product of two narrow matrices beside a layer (arXiv 2106.09685)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers
from models.insertion import Insert, Site
from models.inserts.features import LAYERS, param_dtype


class LoRA(Insert):
  """Adds alpha / rank times up(down(x)) to what a layer of x gives.

  `down` is the layer itself with `rank` features, so that a convolution keeps
  its filters' size, stride and border, and a layer from heads what it sums
  over. `up` begins with zeros: the model is the old one at first. A layer that
  gives several arrays, as queries, keys and values of one parameter, has an
  `up` for each.

  Attributes:
    rank: features between the two.
    alpha: what they add is multiplied with alpha / rank; 0 for rank.
  """

  rank: int = 4
  alpha: float = 0.0

  @nn.compact
  def after(self, site: Site, x: jax.Array, y: Any) -> Any:
    """Adds to what the layer gives.

    Raises:
      ValueError: if rank is below 1, or the layer does not map the channels of
        an array to those of arrays beside it.
    """
    if self.rank < 1:
      raise ValueError(f"rank is {self.rank}; a LoRA needs at least 1")
    narrow = self._down(site)(x)
    scale = (self.alpha or self.rank) / self.rank
    arrays, tree = jax.tree.flatten(y)
    out = []
    for i, array in enumerate(arrays):
      lead = narrow.ndim - 1
      if array.ndim <= lead or array.shape[:lead] != narrow.shape[:-1]:
        raise ValueError(
          f"lora is put at {site.place}, which makes {array.shape} of "
          f"{x.shape}; it needs a layer of the channels, as a dense one or a "
          "convolution"
        )
      name = "up" if len(arrays) == 1 else f"up_{i}"
      up = self._up(array.shape[lead:], array.dtype, site.module, name)
      out.append(array + (scale * up(narrow)).astype(array.dtype))
    return jax.tree.unflatten(tree, out)

  def _down(self, site: Site) -> nn.Module:
    module = site.module
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    fields = {"kernel_init": init, "use_bias": False, "name": "down"}
    if not isinstance(module, LAYERS):
      return layers.Dense(
        self.rank,
        dtype=getattr(module, "dtype", None),
        param_dtype=param_dtype(module),
        **fields,
      )
    if getattr(module, "feature_group_count", 1) != 1:
      raise ValueError(
        f"lora is put at {site.place}, a convolution of "
        f"{module.feature_group_count} groups; it needs one without groups"
      )
    return module.clone(features=self.rank, parent=self, **fields)

  def _up(self, shape, dtype, module, name) -> nn.Module:
    return layers.DenseGeneral(
      shape if len(shape) > 1 else math.prod(shape),
      use_bias=False,
      kernel_init=nn.initializers.zeros,
      dtype=jnp.dtype(dtype),
      param_dtype=param_dtype(module),
      name=name,
    )
