"""What weights of language models on the Hugging Face hub have in common."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import flax.linen as nn
import numpy as np
from flax.core import FrozenDict

from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

# Modules that project to heads, in the order in which tensors of all have them.
INTO_HEADS = ("layer/mixer/query", "layer/mixer/key", "layer/mixer/value")
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "embedding": "weight",
  "bias": "bias",
}


@dataclasses.dataclass(frozen=True)
class Naming:
  """How an architecture's files name what they hold.

  Attributes:
    weight_map: returns the map for a model.
    base: what the names of the model without its head begin with; files of it
      alone, as the first ones of GPT-2, leave it out.
    head: what the names of the head begin with, one or several.
    ignored: names of what is stored and is no parameter of the model: buffers
      of older versions, and heads for other tasks.
    twins: names of second copies of a tensor that is tied to the embedding, and
      the names of the first.
    renamed: endings of older names, and what they are now.
  """

  weight_map: Callable[[nn.Module], WeightMap]
  base: str
  head: str | tuple[str, ...]
  ignored: str
  twins: Mapping[str, str]
  renamed: Mapping[str, str] = FrozenDict()

  def normalise(
    self, tensors: Mapping[str, np.ndarray], tied: bool
  ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Names tensors with `base`, and leaves out what is no parameter.

    Args:
      tensors: {name: tensor} of the files.
      tied: whether the head is the embedding.

    Returns:
      The tensors, and remarks on those twins that differ from the first.
    """
    tensors = {self._present(name): t for name, t in tensors.items()}
    if not any(name.startswith(self.base) for name in tensors):
      tensors = {
        name if name.startswith(self.head) else self.base + name: tensor
        for name, tensor in tensors.items()
      }
    ignored, remarks = re.compile(self.ignored), {}
    left = {n: t for n, t in tensors.items() if not ignored.fullmatch(n)}
    for second, first in self.twins.items() if tied else ():
      if second not in left or first not in left:
        continue
      if np.array_equal(left[second], left[first]):
        del left[second]
      else:
        remarks[second] = f", which config.json ties to {first}, and differs"
    return left, remarks

  def _present(self, name: str) -> str:
    for old, new in self.renamed.items():
      if name.endswith(old):
        return name.removesuffix(old) + new
    return name


def weight_map(
  modules: Mapping[str, str], layout: Callable[[str, str], Layout]
) -> WeightMap:
  """Returns the map for names of modules, {our path: theirs}.

  Args:
    modules: "layer/..." stands for what each layer has, and "{}" for its index.
      A path of a leaf goes before that of its module.
    layout: maps the path of a module and a leaf to the layout.
  """

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    *names, leaf = path
    index = ""
    if names[0].startswith("layer_"):
      index = names[0].removeprefix("layer_")
      names[0] = "layer"
    module = "/".join(names)
    name = modules.get(f"{module}/{leaf}")
    if name is None:
      name = f"{modules[module]}.{_LEAVES[leaf]}"
    return name.format(index), layout(module, leaf)

  return name_and_layout


def layout(module: str, leaf: str) -> Layout:
  """The layout of PyTorch's linear layers, and of everything else."""
  if module in (*INTO_HEADS, "layer/mixer/gate"):
    return layouts.DENSE if leaf == "kernel" else layouts.FLAT
  if leaf != "kernel":
    return layouts.SAME
  return layouts.DENSE_HEADS if module == "layer/mixer/out" else layouts.DENSE
