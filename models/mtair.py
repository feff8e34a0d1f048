"""Restormer, and MTAIR: with selective scans and with prompts.

Restormer (arXiv 2111.09881) is a U-Net whose attention is among channels.
MTAIR, "Multi-dimensional Visual Prompt Enhanced Image Restoration via
Mamba-Transformer Aggregation" (arXiv 2412.15845), adds a scan of places beside
the attention, and prompts to what goes from the encoder to the decoder.

The code that MTAIR's authors published has the U-Net and the sizes of prompts,
but neither of its two kinds of block nor the prompt block. So these are OUR
RECONSTRUCTION, of what its ancestors published: `mtair_layers.Block` with a
scan, `mtair_layers.PromptBlock`, and that there are scans at the first two
levels. The number of parameters of "mtair" is ours, and no result of the paper
is claimed. "restormer", the prompts and the scans equal their public codes.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, mtair_layers
from models.restoration_layers import Restorer
from models.state_space import ImageScan

KIND = "restoration"


class MTAIR(Restorer):
  """A U-Net from degraded images to clean ones of the same size.

  Levels are counted from 0, that of the image; from one to the next sides are
  halved and channels doubled. The decoder's level 0 keeps the channels of what
  comes from below and of the encoder, twice `width`, and so does what refines.

  Attributes:
    width: channels of level 0 of the encoder.
    depths: blocks of each level, of the encoder and of the decoder; the last
      level is there once.
    heads: heads of the attention of each level.
    refinement_depth: blocks behind the decoder.
    expansion: of the feed-forward layers.
    scan_levels: levels whose blocks have a selective scan, both ways; what
      refines has none.
    scan_expansion: channels that are scanned over those of a level.
    scan_states: numbers that a channel of a scan remembers.
    scan_chunk: places that are scanned at a time.
    prompt_widths: channels of the prompts of each level; empty for none.
    prompt_sides: sides of the prompts of each level, those of its images in
      training: other images have them resized.
    prompt_length: number of prompts of a level.
    prompt_heads: heads of the attention to prompts.
  """

  width: int = 48
  depths: tuple[int, ...] = (4, 6, 6, 8)
  heads: tuple[int, ...] = (1, 2, 4, 8)
  refinement_depth: int = 4
  expansion: float = 2.66
  scan_levels: tuple[int, ...] = ()
  scan_expansion: int = 2
  scan_states: int = 16
  scan_chunk: int = 64
  prompt_widths: tuple[int, ...] = ()
  prompt_sides: tuple[int, ...] = ()
  prompt_length: int = 5
  prompt_heads: int = 4

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Restores images.

    Args:
      x: floating point [batch, height, width, 3], RGB from 0 to 1; both sides
        are multiples of `size_multiple`.
      train: changes nothing.

    Returns:
      float32 like `x`; it is not clipped.

    Raises:
      ValueError: for another shape or dtype, or fields that do not fit.
    """
    del train
    _check_fields(self)
    self._check_images(x)
    last = len(self.depths) - 1
    convolution = functools.partial(
      layers.Conv,
      kernel_size=(3, 3),
      padding=1,
      use_bias=False,
      kernel_init=mtair_layers.KERNEL_INIT,
      **self.dtypes,
    )
    y = convolution(self.width, name="embed")(x.astype(self.dtype))
    kept = []
    for level in range(last):
      y = self._level(level, f"encoder_{level}")(y)
      kept.append(y)
      y = mtair_layers.Downsample(name=f"down_{level}", **self.dtypes)(y)
    y = self._prompted(last, self._level(last, "latent")(y))
    for level in reversed(range(last)):
      y = mtair_layers.Upsample(name=f"up_{level}", **self.dtypes)(y)
      y = jnp.concatenate([y, self._prompted(level, kept[level])], axis=-1)
      if level:
        y = layers.Dense(
          self.width * 2**level,
          use_bias=False,
          kernel_init=mtair_layers.KERNEL_INIT,
          name=f"reduce_{level}",
          **self.dtypes,
        )(y)
      y = self._level(level, f"decoder_{level}")(y)
    y = self._blocks(self.heads[0], self.refinement_depth, "refinement")(y)
    y = convolution(3, name="out")(y)
    return y.astype(jnp.float32) + x.astype(jnp.float32)

  @property
  def size_multiple(self) -> int:
    """The number of which height and width of images must be multiples."""
    return 2 ** max(len(self.depths) - 1, 0)

  @nn.nowrap
  def example_inputs(self) -> dict[str, jax.Array]:
    """Returns arguments of the call, of one image, to initialise with."""
    side = self.size_multiple
    return {"x": jnp.zeros((1, side, side, 3))}

  def _level(self, level: int, name: str) -> nn.Module:
    scan = None
    if level in self.scan_levels:
      scan = functools.partial(
        ImageScan,
        self.scan_expansion,
        self.scan_states,
        self.scan_chunk,
        kernel_init=mtair_layers.KERNEL_INIT,
        **self.dtypes,
      )
    return self._blocks(self.heads[level], self.depths[level], name, scan)

  def _blocks(
    self,
    heads: int,
    depth: int,
    name: str,
    scan: functools.partial | None = None,
  ) -> nn.Module:
    block = mtair_layers.Block
    block = functools.partial(
      nn.remat(block) if self.remat else block,
      heads,
      self.expansion,
      scan,
      **self.dtypes,
    )
    return mtair_layers.Level(block, depth, name=name)

  def _prompted(self, level: int, y: jax.Array) -> jax.Array:
    if not self.prompt_widths:
      return y
    prompt = functools.partial(
      mtair_layers.Prompt,
      self.prompt_widths[level],
      self.prompt_sides[level],
      self.prompt_length,
      **self.dtypes,
    )
    return mtair_layers.PromptBlock(
      prompt, self.prompt_heads, name=f"prompt_{level}", **self.dtypes
    )(y)


def _check_fields(model: MTAIR) -> None:
  """Raises ValueError for fields that do not fit."""
  levels = len(model.depths)
  if model.scale != 1:
    raise ValueError(
      f"scale is {model.scale}; this model keeps the size, so it must be 1"
    )
  for field in ("width", "scan_expansion", "scan_states", "prompt_length"):
    if getattr(model, field) < 1:
      raise ValueError(
        f"{field} is {getattr(model, field)}; it must be 1 or more"
      )
  lengths = {"heads": (levels,)}
  for field in ("prompt_widths", "prompt_sides"):
    lengths[field] = (levels,) if model.prompt_widths else (0, levels)
  for field, wanted in lengths.items():
    value = tuple(getattr(model, field))
    if len(value) not in wanted or min(value, default=1) < 1:
      raise ValueError(
        f"{field} is {value}; depths={model.depths} need one for each level, "
        "each 1 or more"
      )
  if not set(model.scan_levels) <= set(range(levels)):
    raise ValueError(
      f"scan_levels is {model.scan_levels}; the levels of depths="
      f"{model.depths} are 0 to {levels - 1}"
    )
  for level, heads in enumerate(model.heads):
    width = model.width * 2**level
    if width % heads:
      raise ValueError(
        f"heads is {model.heads}; level {level} has {width} channels, which "
        f"{heads} does not divide"
      )
    if model.prompt_widths and width % model.prompt_heads:
      raise ValueError(
        f"prompt_heads is {model.prompt_heads}; level {level} has {width} "
        "channels, which it does not divide"
      )
  if levels > 1 and model.width % 2:
    raise ValueError(
      f"width is {model.width}; it must be even, as channels are halved"
    )


VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  # With the biases of layer norms, as its weights for rain and motion blur.
  "restormer": (MTAIR, {}),
  "mtair": (
    MTAIR,
    {
      "scan_levels": (0, 1),
      "prompt_widths": (64, 128, 320, 320),
      "prompt_sides": (128, 64, 32, 16),
    },
  ),
}
