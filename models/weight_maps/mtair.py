"""Names of Restormer's weights, and of MTAIR's parts in its ancestors.

Restormer's are those of github.com/swz30/Restormer, a prompt's those of
github.com/va1shn9v/PromptIR and a scan's those of github.com/csguoh/MambaIR.
MTAIR's own blocks are not published, so how they hold these parts is ours.
"""

from models.mtair import MTAIR
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, Shape, WeightMap

_MODULES = {
  "embed": "patch_embed.proj",
  "out": "output",
  # Of a block.
  "attention_norm": "norm1.body",
  "ffn_norm": "norm2.body",
  "attention/qkv": "attn.qkv",
  "attention/qkv_conv": "attn.qkv_dwconv",
  "attention/q": "attn.q",
  "attention/q_conv": "attn.q_dwconv",
  "attention/kv": "attn.kv",
  "attention/kv_conv": "attn.kv_dwconv",
  "attention/out": "attn.project_out",
  "attention": "attn",
  "ffn/expand": "ffn.project_in",
  "ffn/conv": "ffn.dwconv",
  "ffn/shrink": "ffn.project_out",
  "scan/conv": "scan.conv2d",
  "scan/norm": "scan.out_norm",
  # Of a prompt.
  "norm": "norm.body",
  "prompt/choice": "prompt.linear_layer",
  "prompt/conv": "prompt.conv3x3",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "prompts": "prompt_param"}
_SCAN_LEAVES = {
  "x_proj/kernel": "x_proj_weight",
  "dt_kernel": "dt_projs_weight",
  "dt_bias": "dt_projs_bias",
  "a_log": "A_logs",
  "d": "Ds",
}


def _transposed(there: tuple[int, ...], leading: int = 0) -> Layout:
  """Axes of ours in the order `there`, behind `leading` axes of size one."""
  back = tuple(there.index(axis) for axis in range(len(there)))

  def shape(ours: Shape) -> Shape:
    return (1,) * leading + tuple(ours[axis] for axis in there)

  return Layout(
    shape=shape,
    load=lambda tensor, ours: tensor.reshape(shape(ours)[leading:]).transpose(
      back
    ),
    store=lambda array: array.transpose(there).reshape(shape(array.shape)),
  )


# [heads] as [heads, 1, 1].
_TEMPERATURE = Layout(
  shape=lambda shape: (*shape, 1, 1),
  load=lambda tensor, shape: tensor.reshape(shape),
  store=lambda array: array.reshape(-1, 1, 1),
)
# [ways, channels, ...] as [ways * channels, ...].
_JOINED_WAYS = Layout(
  shape=lambda shape: (shape[0] * shape[1], *shape[2:]),
  load=lambda tensor, shape: tensor.reshape(shape),
  store=lambda array: array.reshape(-1, *array.shape[2:]),
)
_LAYOUTS = {
  "temperature": _TEMPERATURE,
  # [length, height, width, channels].
  "prompts": _transposed((0, 3, 1, 2), leading=1),
  "a_log": _JOINED_WAYS,
  "d": _JOINED_WAYS,
  # [ways, rank, channels].
  "dt_kernel": _transposed((0, 2, 1)),
  # [channels, ways, outputs].
  "x_proj/kernel": _transposed((1, 2, 0)),
}
_CONVOLUTIONS = ("embed", "conv", "qkv_conv", "q_conv", "kv_conv")
_DENSE = ("in_proj", "out_proj", "choice")


def weight_map(model: MTAIR) -> WeightMap:
  """Returns the map for a model."""
  last = len(model.depths) - 1

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    first, *modules, leaf = path
    names = [_first(first, last)]
    if modules and modules[0].startswith("block_"):
      names.append(modules.pop(0).removeprefix("block_"))
    scanned = "/".join([*modules, leaf]).removeprefix("scan/")
    if modules[:1] == ["scan"] and scanned in _SCAN_LEAVES:
      names += ["scan", _SCAN_LEAVES[scanned]]
      return ".".join(names), _LAYOUTS.get(scanned, layouts.SAME)
    inner = "/".join(modules)
    if first.startswith(("down_", "up_")):
      inner = "body.0"
    if inner:
      names.append(_MODULES.get(inner, inner).replace("/", "."))
    names.append(_LEAVES.get(leaf, leaf))
    return ".".join(names), _layout([first, *modules], leaf)

  return name_and_layout


def _first(module: str, last: int) -> str:
  """The name of a part of the U-Net; theirs count levels from 1."""
  kind, _, number = module.rpartition("_")
  if not number.isdigit():
    return _MODULES.get(module, module)
  level = int(number) + 1
  return {
    "encoder": f"encoder_level{level}",
    "decoder": f"decoder_level{level}",
    "down": f"down{level}_{level + 1}",
    "up": f"up{level + 1}_{level}",
    "reduce": f"reduce_chan_level{level}",
    "prompt": f"prompt{level}",
  }[kind]


def _layout(modules: list[str], leaf: str) -> Layout:
  if leaf in _LAYOUTS:
    return _LAYOUTS[leaf]
  if leaf != "kernel":
    return layouts.SAME
  if modules[-1] in _CONVOLUTIONS or modules == ["out"]:
    return layouts.CONV
  return layouts.DENSE if modules[-1] in _DENSE else layouts.DENSE_AS_CONV
