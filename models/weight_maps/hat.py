"""HAT's weights under the names of its released code, which spandrel keeps.

Files have the model's sizes in the shapes of their tensors, but for two numbers
that no tensor has: `load` wants them from who knows them.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from models import registry, weight_files
from models.hat import HAT, STEPS
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

# A part of our path, with # for its number, to theirs.
_MODULES = {
  "first": "conv_first",
  "embed_norm": "patch_embed.norm",
  "norm": "norm",
  "body": "conv_after_body",
  "before_upsample": "conv_before_upsample.0",
  "upsample_#": "upsample.{even}",
  "last": "conv_last",
  "group_#/conv": "layers.{n}.conv",
  "group_#/block_#": "layers.{n}.residual_group.blocks.{m}",
  "group_#/overlapping": "layers.{n}.residual_group.overlap_attn",
}
_OF_BLOCK = {
  "attention_norm": "norm1",
  "attention/qkv": "attn.qkv",
  "attention/out": "attn.proj",
  "attention": "attn",
  "qkv": "qkv",
  "out": "proj",
  "": "",
  "conv/conv_0": "conv_block.cab.0",
  "conv/conv_1": "conv_block.cab.2",
  "conv/reduce": "conv_block.cab.3.attention.1",
  "conv/expand": "conv_block.cab.3.attention.3",
  "ffn_norm": "norm2",
  "ffn/expand": "mlp.fc1",
  "ffn/shrink": "mlp.fc2",
}
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "relative_bias_table": "relative_position_bias_table",
}
_BLOCK = "layers.0.residual_group.blocks.0"
_OVERLAPPING = "layers.0.residual_group.overlap_attn"


def load(
  source: str | pathlib.Path,
  *,
  conv_scale: float,
  image_range: float,
  **overrides: Any,
) -> tuple[HAT, dict[str, Any]]:
  """Returns the network that a file of weights is of, and its variables.

  Args:
    source: path of a .safetensors file with the names of the released code.
    conv_scale: factor of the convolutional branches in training; 0.01 in the
      published networks.
    image_range: what images were multiplied by in training; 1 in the published
      networks.
    **overrides: other fields of `HAT`, as `dtype="bfloat16"`.

  Raises:
    ValueError: if the file cannot be read or is not of such a network.
  """
  # It imports the maps.
  from models import pretrained

  tensors = weight_files.read(source)
  try:
    model = registry.build(
      HAT,
      {
        **fields(tensors),
        "conv_scale": conv_scale,
        "image_range": image_range,
        **overrides,
      },
    )
    return model, pretrained.from_tensors(tensors, model)
  except ValueError as error:
    raise ValueError(f"source is {str(source)!r}: {error}") from None


def fields(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns those fields of `HAT` that the shapes of its tensors say.

  Raises:
    ValueError: if tensors that say it are missing.
  """

  def shape(name):
    if name not in tensors:
      raise ValueError(f"missing: {name}, which HAT's files have")
    return tensors[name].shape

  window_tokens, _ = shape("relative_position_index_SA")
  window = math.isqrt(window_tokens)
  overlapping = math.isqrt(shape("relative_position_index_OCA")[1])
  groups = _count(tensors, r"layers\.(\d+)\.conv\.weight")
  depths = tuple(
    _count(
      tensors, rf"layers\.{i}\.residual_group\.blocks\.(\d+)\.norm1\.weight"
    )
    for i in range(groups)
  )
  steps = tuple(
    math.isqrt(tensor.shape[0] // tensor.shape[1])
    for name, tensor in sorted(tensors.items())
    if re.fullmatch(r"upsample\.\d+\.weight", name)
  )
  scales = {steps: scale for scale, steps in STEPS.items()}
  if steps not in scales:
    raise ValueError(
      f"upsampling in steps of {steps}; known are {[*scales]}, one tensor each"
    )
  return {
    "width": shape("conv_first.weight")[0],
    "scale": scales[steps],
    "depths": depths,
    "heads": shape(f"{_OVERLAPPING}.relative_position_bias_table")[1],
    "window_size": window,
    "halo_size": (overlapping - window) // 2,
    "mlp_width": shape(f"{_BLOCK}.mlp.fc1.weight")[0],
    "conv_width": shape(f"{_BLOCK}.conv_block.cab.0.weight")[0],
    "gate_width": shape(f"{_BLOCK}.conv_block.cab.3.attention.1.weight")[0],
    "upsample_width": shape("conv_last.weight")[1],
  }


def _count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
  """Returns one more than the greatest number that names have."""
  matches = (re.fullmatch(pattern, name) for name in tensors)
  return 1 + max((int(match[1]) for match in matches if match), default=-1)


def constants(model: HAT) -> dict[str, np.ndarray]:
  """Returns the indices into tables that the released code stores."""
  window, wide = model.window_size, model.window_size + 2 * model.halo_size
  return {
    "relative_position_index_SA": _indices(
      window, window, sign=-1, shift=window - 1, row=2 * window - 1
    ),
    # Theirs may be negative: they count from the end of the table.
    "relative_position_index_OCA": _indices(
      window,
      wide,
      sign=1,
      shift=window - wide + 1,
      row=window + wide - 1,
    ),
  }


def _indices(
  queries: int, keys: int, *, sign: int, shift: int, row: int
) -> np.ndarray:
  """Returns [queries^2, keys^2] indices of a table with rows of `row`."""
  offsets = sign * (np.arange(keys) - np.arange(queries)[:, None]) + shift
  # [i, j, m, n], queries at (i, j) and keys at (m, n)
  index = offsets[:, None, :, None] * row + offsets[None, :, None, :]
  return index.reshape(queries**2, keys**2)


def weight_map(model: HAT) -> WeightMap:
  """Returns the map; the order of overlapping tables depends on windows."""

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    *modules, leaf = path
    head, numbers = [], [0]
    while modules and (head[:1] != ["group_#"] or len(head) < 2):
      key, number = _numbered(modules.pop(0))
      head.append(key)
      numbers.append(number)
    key = "/".join(head)
    # The first number is that of the group, or of the step.
    name = _MODULES[key].format(
      n=numbers[1], m=numbers[-1], even=2 * numbers[-1]
    )
    rest = "/".join(modules)
    parts = [name, _OF_BLOCK[rest], _LEAVES[leaf]]
    layout = _layout(model, head[-1], rest, leaf)
    return ".".join(part for part in parts if part), layout

  return name_and_layout


def _numbered(module: str) -> tuple[str, int]:
  """Splits "block_1" into ("block_#", 1); a name without a number has 0."""
  match = re.fullmatch(r"(.+_)(\d+)", module)
  return (f"{match[1]}#", int(match[2])) if match else (module, 0)


def _layout(model: HAT, owner: str, module: str, leaf: str) -> Layout:
  if leaf == "relative_bias_table":
    if owner == "overlapping":
      # As what they count from the end is, in the order of ours.
      wide = model.window_size + 2 * model.halo_size
      return _table(roll=(wide - 2) * (model.window_size + wide))
    return _table(flip=True)
  if module.endswith("qkv"):
    return layouts.DENSE if leaf == "kernel" else layouts.FLAT
  if leaf != "kernel":
    return layouts.SAME
  if module.endswith("out"):
    return layouts.DENSE_HEADS
  if module.startswith("ffn/"):
    return layouts.DENSE
  if module in ("conv/reduce", "conv/expand"):
    return layouts.DENSE_AS_CONV
  return layouts.CONV


def _table(flip: bool = False, roll: int = 0) -> Layout:
  """A table [heads, offsets, offsets] as [offsets^2, heads], in their order.

  Args:
    flip: whether theirs counts from the key to the query.
    roll: where in ours their first row is, from the end counted negative.
  """
  step = -1 if flip else 1
  return Layout(
    shape=lambda shape: (shape[1] * shape[2], shape[0]),
    load=lambda tensor, shape: np.roll(tensor[::step], roll, 0).T.reshape(
      shape
    ),
    store=lambda array: np.roll(array.reshape(len(array), -1).T, -roll, 0)[
      ::step
    ],
  )
