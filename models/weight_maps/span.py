"""SPAN's weights under the names of its released code, which spandrel keeps.

Files have one of two layouts. Those of a training have the branches of each
convolution, and beside them the filter "eval_conv" that the code makes of them
when it is called; it may be older than they are, and is not read. Small files
have the filters alone.
"""

import re

import jax
import numpy as np

from models import span
from models.span import Span
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

_ENDS = {"merge": "conv_cat", "upsample": "upsampler.0"}
_BRANCHES = {
  "expand": "conv.0",
  "filter": "conv.1",
  "shrink": "conv.2",
  "skip": "sk",
}
_LEAVES = {"kernel": "weight", "bias": "bias"}
_BRANCH = re.compile(r"(.*)\.(conv\.[012]|sk)\.(weight|bias)")
_FOLDED = re.compile(r".*\.eval_conv\.(weight|bias)")


def weight_map(model: Span) -> WeightMap:
  """Returns the map for the form that the model has."""
  del model
  return _name_and_layout


def _name_and_layout(path: Path) -> tuple[str, Layout]:
  *modules, leaf = path
  if modules[0] in _ENDS:
    one_pixel = modules[0] == "merge"
    return f"{_ENDS[modules[0]]}.{_LEAVES[leaf]}", _layout(leaf, one_pixel)
  branch = _BRANCHES.get(modules[-1])
  where = modules[:-1] if branch else modules
  name = ".".join(
    f"c{part[5:]}_r" if i else part for i, part in enumerate(where)
  )
  one_pixel = branch is not None and modules[-1] != "filter"
  return f"{name}.{branch or 'eval_conv'}.{_LEAVES[leaf]}", _layout(
    leaf, one_pixel
  )


def _layout(leaf: str, one_pixel: bool) -> Layout:
  if leaf == "bias":
    return layouts.SAME
  return layouts.DENSE_AS_CONV if one_pixel else layouts.CONV


def normalise(
  tensors: dict[str, np.ndarray], model: Span
) -> dict[str, np.ndarray]:
  """Returns a file's tensors in the layout of the form that the model has.

  Raises:
    ValueError: for a model of the form "train" and filters alone, from which
      there is no way back to the branches.
  """
  branches = [name for name in tensors if _BRANCH.fullmatch(name)]
  folded = [name for name in tensors if _FOLDED.fullmatch(name)]
  if branches:
    kept = {n: t for n, t in tensors.items() if n not in folded}
    return kept if model.form == "train" else _folded(kept, branches)
  if folded and model.form == "train":
    raise ValueError(
      f"it has {len(folded)} tensors of folded convolutions, as "
      f"{folded[0]}, and no branches; they cannot be trained as "
      "form='train' has it: use form='deploy'"
    )
  return tensors


def _folded(
  tensors: dict[str, np.ndarray], branches: list[str]
) -> dict[str, np.ndarray]:
  """Puts the filters that branches make in their place.

  Convolutions whose branches are not whole stay, and are told as missing.
  """
  of_name = {name: branch for branch, name in _BRANCHES.items()}
  found = {}
  for name in branches:
    where, branch, leaf = _BRANCH.fullmatch(name).groups()
    key = "kernel" if leaf == "weight" else leaf
    tensor = np.asarray(tensors[name], np.float32)
    if tensor.ndim == 4:
      tensor = tensor.transpose(2, 3, 1, 0)
      tensor = tensor if branch == "conv.1" else tensor[0, 0]
    found.setdefault(where, {}).setdefault(of_name[branch], {})[key] = tensor
  whole = {
    where: own
    for where, own in found.items()
    if sum(map(len, own.values())) == 2 * len(_BRANCHES)
  }
  rest = {n: t for n, t in tensors.items() if _where(n) not in whole}
  for where, own in jax.device_get(jax.jit(span.fold)(whole)).items():
    rest[f"{where}.eval_conv.weight"] = own["kernel"].transpose(3, 2, 0, 1)
    rest[f"{where}.eval_conv.bias"] = own["bias"]
  return rest


def _where(name: str) -> str | None:
  match = _BRANCH.fullmatch(name)
  return match and match[1]
