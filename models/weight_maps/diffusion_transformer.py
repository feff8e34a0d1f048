"""DiT's weights under the names of the authors' modules.

Those of github.com/facebookresearch/DiT, which its checkpoints have. Their
"pos_embed" is no parameter of ours, since it is computed.
"""

import numpy as np

from models import positions
from models.diffusion_transformer import DiffusionTransformer
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

_MODULES = {
  "patch_embed": "x_embedder.proj",
  "time_embed/expand": "t_embedder.mlp.0",
  "time_embed/shrink": "t_embedder.mlp.2",
  "label_embed": "y_embedder.embedding_table",
  "final/modulation": "final_layer.adaLN_modulation.1",
  "final/out": "final_layer.linear",
}
_BLOCK = {
  "modulation": "adaLN_modulation.1",
  "attention/out": "attn.proj",
  "mlp/expand": "mlp.fc1",
  "mlp/shrink": "mlp.fc2",
}
_INTO_HEADS = {
  f"attention/{n}": i for i, n in enumerate(("query", "key", "value"))
}
_LEAVES = {"kernel": "weight", "embedding": "weight"}


def weight_map(model: DiffusionTransformer) -> WeightMap:
  """Returns the map for a model with the structure of DiT.

  Raises:
    ValueError: if it has another, of which nobody published weights.
  """
  for field, needed in (
    ("conditioning", "adaptive"),
    ("position_encoding", "sincos"),
    ("mixer", "attention"),
  ):
    if getattr(model, field) != needed:
      raise ValueError(
        f"{field} is {getattr(model, field)!r}; published weights are for "
        f"{field}={needed!r}"
      )

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    *modules, leaf = path
    module, names, prefix = "/".join(modules), _MODULES, ""
    if module.startswith("block_"):
      block, _, module = module.partition("/")
      names, prefix = _BLOCK, f"blocks.{block.removeprefix('block_')}."
    name = _LEAVES.get(leaf, leaf)
    if module in _INTO_HEADS:
      layout = layouts.DENSE if leaf == "kernel" else layouts.FLAT
      part = layout.part_of(_INTO_HEADS[module], 3)
      return f"{prefix}attn.qkv.{name}", part
    layout = layouts.DENSE if leaf == "kernel" else layouts.SAME
    if (module, leaf) == ("patch_embed", "kernel"):
      layout = _patches(tuple(model.patch_size))
    return f"{prefix}{names[module]}.{name}", layout

  return name_and_layout


def constants(model: DiffusionTransformer) -> dict[str, np.ndarray]:
  """Returns the tensors that are computed here, and files may have."""
  grid = model.token_grid(model.sample_shape)
  return {
    "pos_embed": np.asarray(positions.sincos_grid(grid, model.width))[None]
  }


def _patches(patch: tuple[int, ...]) -> Layout:
  """A dense layer of patches, channels last, as a convolution of any rank."""
  axes = len(patch)

  def shape(ours):
    return (ours[1], ours[0] // int(np.prod(patch)), *patch)

  def load(tensor, ours):
    return tensor.transpose(*range(2, 2 + axes), 1, 0).reshape(ours)

  def store(array):
    array = array.reshape(*patch, -1, array.shape[1])
    return array.transpose(axes + 1, axes, *range(axes))

  return Layout(shape=shape, load=load, store=store)
