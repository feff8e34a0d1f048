"""How other codebases name and lay out the weights of our models.

A map is a function from the path of one of our variables to the name and layout
of its counterpart: going through our own tree, rather than through a file, is
what makes missing and surplus tensors plain to see.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import numpy as np

from models.maxvit import MaxViT

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A way to store an array elsewhere.

  Attributes:
    shape: maps the shape of our array to that of the tensor.
    load: maps the tensor and the shape of our array to our array.
    store: maps our array to the tensor.
  """

  shape: Callable[[tuple[int, ...]], tuple[int, ...]]
  load: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  store: Callable[[np.ndarray], np.ndarray]


def _matrix(inputs: int, trailing: tuple[int, ...] = ()) -> Layout:
  """A kernel whose first `inputs` axes are summed over, as [out, in, ...]."""

  def sizes(shape):
    return int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs]))

  return Layout(
    shape=lambda shape: sizes(shape) + trailing,
    load=lambda tensor, shape: tensor.reshape(sizes(shape)).T.reshape(shape),
    store=lambda array: array.reshape(sizes(array.shape)[::-1]).T.reshape(
      sizes(array.shape) + trailing
    ),
  )


SAME = Layout(
  shape=lambda shape: shape,
  load=lambda tensor, shape: tensor,
  store=lambda array: array,
)
FLAT = Layout(
  shape=lambda shape: (int(np.prod(shape)),),
  load=lambda tensor, shape: tensor.reshape(shape),
  store=lambda array: array.reshape(-1),
)
DENSE = _matrix(inputs=1)
# Sums over heads and channels of a head.
DENSE_HEADS = _matrix(inputs=2)
DENSE_AS_CONV = _matrix(inputs=1, trailing=(1, 1))
# Ours is [height, width, in, out], theirs [out, in, height, width].
CONV = Layout(
  shape=lambda shape: (shape[3], shape[2], shape[0], shape[1]),
  load=lambda tensor, shape: tensor.transpose(2, 3, 1, 0),
  store=lambda array: array.transpose(3, 2, 0, 1),
)

_TIMM_MODULES = {
  "stem/conv_0": "stem.conv1",
  "stem/norm_0": "stem.norm1",
  "stem/conv_1": "stem.conv2",
  "head/norm": "head.norm",
  "head/hidden": "head.pre_logits.fc",
  "head/logits": "head.fc",
  "mbconv/pre_norm": "conv.pre_norm",
  "mbconv/expand_conv": "conv.conv1_1x1",
  "mbconv/expand_norm": "conv.norm1",
  "mbconv/depthwise_conv": "conv.conv2_kxk",
  "mbconv/depthwise_norm": "conv.norm2",
  "mbconv/se/reduce": "conv.se.fc1",
  "mbconv/se/expand": "conv.se.fc2",
  "mbconv/shrink_conv": "conv.conv3_1x1",
  "mbconv/shortcut/conv": "conv.shortcut.expand",
  "attention_norm": "norm1",
  "attention/qkv": "attn.qkv",
  "attention/out": "attn.proj",
  "attention": "attn.rel_pos",
  "ffn_norm": "norm2",
  "ffn/expand": "mlp.fc1",
  "ffn/shrink": "mlp.fc2",
}
_TIMM_ATTENTION = {
  "block_attention": "attn_block",
  "grid_attention": "attn_grid",
}
_TIMM_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
  "relative_bias_table": "relative_position_bias_table",
}


def maxvit(path: Path) -> tuple[str, Layout]:
  """Maps a path in MaxViT's variables to timm's maxvit_*_tf models.

  Raises:
    KeyError: if timm has no such layer, as in another layout than the paper's.
  """
  *modules, leaf = path
  prefix = []
  if modules[0].startswith("stage_"):
    stage, block, *modules = modules
    prefix = [f"stages.{stage[6:]}.blocks.{block[6:]}"]
    if modules[0] != "mbconv":
      prefix.append(_TIMM_ATTENTION[modules.pop(0)])
  module = "/".join(modules)
  name = ".".join([*prefix, _TIMM_MODULES[module], _TIMM_LEAVES[leaf]])
  return name, _maxvit_layout(module, leaf)


def _maxvit_layout(module: str, leaf: str) -> Layout:
  if module == "attention/qkv":
    return DENSE if leaf == "kernel" else FLAT
  if leaf != "kernel":
    return SAME
  if module == "attention/out":
    return DENSE_HEADS
  if module.startswith("stem/") or module == "mbconv/depthwise_conv":
    return CONV
  return DENSE_AS_CONV if module.startswith("mbconv/") else DENSE


_MAPS = {MaxViT: maxvit}


def of(model: nn.Module) -> Callable[[Path], tuple[str, Layout]]:
  """Returns the map for a model.

  Raises:
    ValueError: if there is none for its family.
  """
  if type(model) not in _MAPS:
    families = sorted(family.__name__ for family in _MAPS)
    raise ValueError(
      f"model is a {type(model).__name__}; weights can be loaded for {families}"
    )
  return _MAPS[type(model)]
