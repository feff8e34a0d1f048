"""A trunk with a probe: any model of images whose maps a small head reads.

With `config.frozen_trunk` the head alone is trained, which is probing.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import FrozenDict

from models import probes, registry
from models.backbone import Backbone


class Probed(Backbone):
  """A trunk and a probe of its last map, see `models.probes`.

  Attributes:
    backbone: name of the model that is the trunk.
    backbone_options: fields of the trunk and their values.
    stage: which of the trunk's maps is read, as an index of what its
      `features` gives without a class token, which is the last map but one of
      trunks whose `class_token` is true.
    probe: a name of `models.probes.names`.
    probe_options: fields of the probe, as `queries` of "ep".
    stochastic_depth_rate: of the trunk.
    num_classes: number of logits; if 0, `model.apply` gives what they would be
      made of.
    attention_implementation: of the probe, see `attention.kernels.dispatch`.
  """

  backbone: str = "vit_base_16_224"
  backbone_options: Mapping[str, Any] = FrozenDict()
  stage: int = -1
  probe: str = "ep"
  probe_options: Mapping[str, Any] = FrozenDict()
  attention_implementation: str = "auto"

  def __post_init__(self):
    # Hashable, so that a model can be a static argument of jit.
    self.backbone_options = FrozenDict(self.backbone_options)
    self.probe_options = FrozenDict(self.probe_options)
    super().__post_init__()

  def setup(self):
    self.trunk = self._create_trunk()
    self.head = probes.Head(
      self.probe,
      self.probe_options,
      self.num_classes,
      self.attention_implementation,
      **self.dtypes,
    )

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns what a probe may read of the trunk.

    Its map [batch, rows, columns, width], and the class token [batch, 1, 1,
    width] if it has one.

    Raises:
      ValueError: if there is no map of this stage, or `x` does not fit.
    """
    maps = self.trunk.features(x, train=train)
    token = []
    if getattr(self.trunk, "class_token", False):
      maps, token = [*maps[:-2], maps[-1]], [maps[-2]]
    if not -len(maps) <= self.stage < len(maps):
      raise ValueError(
        f"stage is {self.stage}; {self.backbone} has {len(maps)} maps"
      )
    return [maps[self.stage], *token]

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    return self.head(maps, train)

  @property
  def size_multiple(self) -> int:
    """That of the trunk."""
    return self._create_trunk().size_multiple

  @nn.nowrap
  def _create_trunk(self) -> nn.Module:
    if registry.kind(self.backbone) != "image":
      raise ValueError(
        f"backbone is {self.backbone!r}, which is no model of images; see "
        'models.list(kind="image")'
      )
    fields = {
      "num_classes": 0,
      "stochastic_depth_rate": self.stochastic_depth_rate,
      "remat": self.remat,
      **self.dtypes,
    }
    return registry.create(self.backbone, **{**fields, **self.backbone_options})


KIND = "image"
# By trunk; any other is a field. Published probes read tokens before the last
# norm.
_TRUNKS = ("tiny_16", "small_16", "base_16", "large_16", "huge_14")
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  f"probed_vit_{name}_224": (
    Probed,
    {
      "backbone": f"vit_{name}_224",
      "backbone_options": FrozenDict(normalized_features=False),
    },
  )
  for name in _TRUNKS
}
IMAGE_SIZES = dict.fromkeys(VARIANTS, 224)
