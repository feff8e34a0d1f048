"""DiMR's weights under the names of its released code.

Those of github.com/qihao067/DiMR at fa141ae.
"""

from models.dimr import DiMR
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

_MODULES = {
  "patch_embed": "input_layer.1",
  "upsample/norm": "upsample.0",
  "upsample/dense": "upsample.1.kernel",
  "upsample/out_norm": "upsample.2",
  "norm": "output_layer.0",
  "out": "output_layer.2",
}
_TABLES = {
  "position": "input_layer.3.position_embeddings.weight",
  "classes": "class_embeds.weight",
}
_BLOCK = {
  "attention_norm": "block1.norm",
  "attention/out": "block1.dense",
  "convolution": "block1.1",
  "mlp_norm": "block2.norm",
  "mlp/gate": "block2.w0",
  "mlp/expand": "block2.w1",
  "mlp/shrink": "block2.w2",
}
# What the vectors of a layer norm are called; that of an RMS norm is "scale".
_LAYER_NORM = {"scale": "weight", "bias": "bias"}
_HEADS = ("query", "key", "value")
_LEAVES = {
  "kernel": "weight",
  "noisy": "param0",
  "clean": "param1",
  "slope": "nodecay_weight",
  "offset": "nodecay_bias",
}
# [rows, columns, width], theirs with all places as one axis.
_PLACES = Layout(
  shape=lambda shape: (shape[0] * shape[1], shape[2]),
  load=lambda tensor, shape: tensor.reshape(shape),
  store=lambda array: array.reshape(-1, array.shape[2]),
)


def weight_map(model: DiMR) -> WeightMap:
  """Returns the map for a DiMR, which is the same for all."""
  del model

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    stage, *modules, leaf = path
    prefix = f"stages.{stage.removeprefix('stage_')}."
    if not modules:
      layout = _PLACES if leaf == "position" else layouts.SAME
      return prefix + _TABLES[leaf], layout
    layout = _kernel(modules) if leaf == "kernel" else layouts.SAME
    leaf = _LEAVES.get(leaf, leaf)
    if modules[0].startswith("skip_"):
      return f"{prefix}skip_denses.{modules[0][5:]}.{leaf}", layout
    names = _MODULES
    if modules[0].startswith("block_"):
      prefix += f"blocks.{modules.pop(0)[6:]}."
      names = _BLOCK
    if modules[-1] in _HEADS:
      part = layouts.DENSE.part_of(_HEADS.index(modules[-1]), len(_HEADS))
      return prefix + "block1.query_key_value.weight", part
    if modules[-1] in _LAYER_NORM:
      vector = modules.pop()
      leaf = f"{vector if names is _BLOCK else _LAYER_NORM[vector]}.{leaf}"
    return f"{prefix}{names['/'.join(modules)]}.{leaf}", layout

  return name_and_layout


def _kernel(modules: list[str]) -> Layout:
  if modules[-1] in ("patch_embed", "convolution") or modules == ["out"]:
    return layouts.CONV
  return layouts.DENSE_HEADS if modules[-1] == "out" else layouts.DENSE
