"""Names of the KL autoencoder's weights: latent diffusion's, and diffusers'.

The first are those of github.com/CompVis/latent-diffusion, which MAR's KL-16
and single files of Stable Diffusion have; the second those of `AutoencoderKL`
in github.com/huggingface/diffusers.
"""

import re
from collections.abc import Iterable

from models.autoencoder import Autoencoder
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

# A part of our path, with # for its number, to theirs: {n} is the number,
# {next} the one after it, {mirrored} that of the level counted from the last.
# Names that are not here are the same.
_COMMON = {
  "norm_#": "norm{next}",
  "conv_#": "conv{next}",
  "quant": "quant_conv",
  "post_quant": "post_quant_conv",
}
_LATENT_DIFFUSION = _COMMON | {
  "encoder/level_#": "down.{n}",
  "decoder/level_#": "up.{n}",
  "downsample_#": "down.{n}.downsample.conv",
  "upsample_#": "up.{n}.upsample.conv",
  "middle_block_#": "mid.block_{next}",
  "middle_attention": "mid.attn_1",
  "block_#": "block.{n}",
  "attention_#": "attn.{n}",
  "shortcut": "nin_shortcut",
  "query": "q",
  "key": "k",
  "value": "v",
  "out": "proj_out",
}
_DIFFUSERS = _COMMON | {
  "encoder/level_#": "down_blocks.{n}",
  "decoder/level_#": "up_blocks.{mirrored}",
  "downsample_#": "down_blocks.{n}.downsamplers.0.conv",
  "upsample_#": "up_blocks.{mirrored}.upsamplers.0.conv",
  "middle_block_#": "mid_block.resnets.{n}",
  "middle_attention": "mid_block.attentions.0",
  "block_#": "resnets.{n}",
  "attention_#": "attentions.{n}",
  "shortcut": "conv_shortcut",
  "norm": "group_norm",
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "out": "to_out.0",
  "norm_out": "conv_norm_out",
}
NAMINGS = {
  "latent_diffusion": _LATENT_DIFFUSION,
  "diffusers": _DIFFUSERS,
  # In files of its first years that have not been written again since.
  "diffusers_2022": _DIFFUSERS
  | {"query": "query", "key": "key", "value": "value", "out": "proj_attn"},
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def recognise(names: Iterable[str]) -> str:
  """Returns which of NAMINGS a file's names are of."""
  names = tuple(names)
  if not any("mid_block." in name for name in names):
    return "latent_diffusion"
  old = any(name.endswith(".proj_attn.weight") for name in names)
  return "diffusers_2022" if old else "diffusers"


def weight_map(
  model: Autoencoder, naming: str = "latent_diffusion"
) -> WeightMap:
  """Returns the map for an autoencoder, to the names of one of NAMINGS."""
  templates, last = NAMINGS[naming], len(model.multipliers) - 1

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    *modules, leaf = path
    names = []
    for module in modules:
      key, n = _numbered(module)
      template = templates.get(
        f"{modules[0]}/{key}", templates.get(key, module)
      )
      names.append(template.format(n=n, next=n + 1, mirrored=last - n))
    return ".".join([*names, _LEAVES[leaf]]), _layout(naming, modules[-1], leaf)

  return name_and_layout


def _numbered(module: str) -> tuple[str, int]:
  """Splits "block_1" into ("block_#", 1); a name without a number has 0."""
  match = re.fullmatch(r"(.+_)(\d+)", module)
  return (f"{match[1]}#", int(match[2])) if match else (module, 0)


def _layout(naming: str, module: str, leaf: str) -> Layout:
  if leaf != "kernel":
    return layouts.SAME
  if module in ("query", "key", "value", "out"):
    # Here attention's layers are convolutions of one pixel, there they are not.
    as_convolution = naming == "latent_diffusion"
    return layouts.DENSE_AS_CONV if as_convolution else layouts.DENSE
  if module in ("shortcut", "quant", "post_quant"):
    return layouts.DENSE_AS_CONV
  return layouts.CONV
