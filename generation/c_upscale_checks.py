"""What C-Upscale refuses before any work, and where its tiles lie."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from attention import checks
from generation.paths import Path
from generation.tiles import Tiles


def plan(
  model: nn.Module,
  path: Path,
  *,
  condition: Mapping[str, jax.Array],
  scale: int = 2,
  steps: int = 50,
  guidance: float = 1.0,
  start: float = 0.45,
  overlap: tuple[int, ...] | None = None,
  structure: float = 1.0,
  gate: bool = True,
  mix: float = 0.0,
  described: bool = False,
) -> tuple[Tiles, np.ndarray]:
  """Returns the tiles and the times that `upscale` goes through.

  Args:
    model: see `c_upscale.upscale`, and so for the path and all options.
    path: of the model.
    condition, scale, steps, guidance, start, overlap, structure, gate, mix: see
      there.
    described: whether tiles have prompts of their own.

  Raises:
    ValueError: for what does not fit.
  """
  checks.number("guidance", guidance)
  checks.share("start", start, positive=True)
  checks.share("structure", structure)
  checks.flag("gate", gate)
  checks.share("mix", mix)
  if (gate or mix) and getattr(model, "conditioning", None) != "cross":
    raise ValueError(
      f"gate is {gate} and mix {mix}, of cross-attention, and conditioning of "
      f"the model is {getattr(model, 'conditioning', None)!r}: take a model "
      "with 'cross', or gate=False and mix=0"
    )
  if bool(mix) != described:
    raise ValueError(
      f"mix is {mix}, and there is {'a' if described else 'no'} describe: "
      "prompts of tiles need both"
    )
  if not condition:
    raise ValueError('condition={} is none: it needs "label" or "text".')
  tiles = tiles_of(model, scale, overlap)
  times = path.times(steps)
  times = times[times <= start * times[0]]
  if len(times) < 2:
    raise ValueError(
      f"start is {start}, which leaves no step of steps={steps}: more of "
      "either do"
    )
  return tiles, times


def tiles_of(
  model: nn.Module, scale: int, overlap: tuple[int, ...] | None = None
) -> Tiles:
  """Returns the tiles of the canvas, of which height and width are larger.

  Args:
    model: of a tile.
    scale: how many times as high and wide the canvas is.
    overlap: of tiles, a number a side; half of height and width if None.

  Raises:
    ValueError: for what does not fit, or tiles that patches do not divide.
  """
  checks.whole("scale", scale, 1)
  window = tuple(model.sample_shape)
  if len(window) < 2:
    raise ValueError(
      f"sample_shape of the model is {window}; what is enlarged has height and "
      "width"
    )
  patch = tuple(getattr(model, "patch_size", (1,) * len(window)))
  *rest, height, width = window
  if overlap is None:
    # Half of a tile, in whole patches.
    halves = (
      side // (2 * p) * p for side, p in zip(window, patch, strict=True)
    )
    overlap = (*(0 for _ in rest), *list(halves)[-2:])
  tiles = Tiles((*rest, scale * height, scale * width), window, overlap)
  tiles.in_patches(patch)
  return tiles
