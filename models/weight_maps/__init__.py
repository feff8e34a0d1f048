"""How other codebases name and lay out the weights of our models.

A map is a function from the path of one of our variables to the name and layout
of its counterpart: going through our own tree, rather than through a file, is
what makes missing and surplus tensors plain to see.
"""

import flax.linen as nn

from models.duoformer import DuoFormer
from models.halonet import HaloNet
from models.maxvit import MaxViT
from models.resnet import ResNet
from models.weight_maps import duoformer, halonet, maxvit, resnet
from models.weight_maps.layouts import WeightMap

# For each family a function from the model to its map.
_FAMILIES = {
  DuoFormer: lambda model: duoformer.weight_map(of(part(model, "trunk"))),
  HaloNet: halonet.weight_map,
  MaxViT: maxvit.weight_map,
  ResNet: resnet.weight_map,
}


def of(model: nn.Module) -> WeightMap:
  """Returns the map for a model.

  Raises:
    ValueError: if there is none for its family.
  """
  if type(model) not in _FAMILIES:
    families = sorted(family.__name__ for family in _FAMILIES)
    raise ValueError(
      f"model is a {type(model).__name__}; weights can be loaded for {families}"
    )
  return _FAMILIES[type(model)](model)


def part(model: nn.Module, name: str) -> nn.Module:
  """Returns the submodule `name` of a model, as a model of its own.

  Raises:
    ValueError: if there is none.
  """
  found = getattr(model.bind({}), name, None)
  if not isinstance(found, nn.Module):
    raise ValueError(
      f"part is {name!r}; {type(model).__name__} has no such submodule"
    )
  return found.unbind()[0]
