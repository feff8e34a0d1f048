"""Sparse attention of video and image generators at the sizes of their papers.

Which blocks suit which chip is ours. A tile of 128 x 128 scores takes a third
of the cycles of one of 512 x 512 on a v5e, so masks have blocks of 512 there;
GPUs have those of the released codes.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import attention
from attention import masks, permutations, pyramid, pyramid_levels
from attention.kernels import flash_gpu, flash_tpu
from attention.mask_base import Mask

# Heads are alike: 40 of Wan 2.1, 24 of FLUX.1 and of HunyuanVideo.
HEADS, DIM = 2, 128
# Height and width in tokens of 4096 pixels, and of a quarter of them.
_HIGH, _LOW, _TEXT = (256, 256), (64, 64), 512
_VIDEO = (21, 68, 120)
# Wan 2.1's 81 frames of 720 x 1280 pixels, 75,600, in whole blocks of PSA.
_PYRAMID = 75_776


class Sparse(NamedTuple):
  """A mask at a size.

  Attributes:
    tokens: number of keys.
    mask: function of a platform, "tpu" or "gpu"; None where all is visible.
    queries: number of queries, the last tokens; all if None.
    platforms: whose kernels take it.
  """

  tokens: int
  mask: Callable[[str], Mask] | None = None
  queries: int | None = None
  platforms: tuple[str, ...] = ("tpu", "gpu")


def _radial(frames: int, decay: float, sink: bool) -> Callable[[str], Mask]:
  @functools.cache
  def mask(platform):
    return masks.radial_blocks(
      frames,
      3840,
      decay=decay,
      sink=sink,
      block_size={"tpu": 512, "gpu": 128}[platform],
    )

  return mask


@functools.cache
def _scale_dit(platform: str) -> Mask:
  """Of the images alone: the text sees all, and is a call of its own."""
  sizes = {"tpu": (512, 512), "gpu": (128, 64)}[platform]
  blocks = masks.scale_dit_blocks(
    _TEXT, _HIGH, _LOW, hilbert=True, block_q=sizes[0], block_k=sizes[1]
  )
  return masks.blocks(blocks.table[:, :, _TEXT // sizes[0] :], *sizes)


@functools.cache
def _freeswim(platform: str) -> Mask:
  """In an order in which windows are few runs, whatever the platform."""
  del platform
  mask = masks.inward_window(_VIDEO, (None, 480 // 16 // 2, 832 // 16 // 2))
  return mask.reordered(permutations.windows(_VIDEO, (_VIDEO[0], 4, 2)))


def _pyramid(
  bounds: tuple[float, ...], sizes: dict[str, tuple[int, int]] | None = None
) -> Callable[[str], Mask]:
  """PSA's levels of blocks that are as important as chance has it.

  Means of eight fill a tile of 128 keys, of TPUs, if blocks have 1024 keys, and
  one of 64, of GPUs, if they have 512. The paper has 32 to 128.
  """
  sizes = sizes or {"tpu": (512, 1024), "gpu": (128, 512)}

  @functools.cache
  def mask(platform):
    block_q, block_k = sizes[platform]
    shape = (1, 1, _PYRAMID // block_q, _PYRAMID // block_k)
    importance = np.random.default_rng(0).random(shape, np.float32)
    # Known before the program runs, though a program asks for it.
    with jax.ensure_compile_time_eval():
      levels = pyramid_levels.levels_by_count(jnp.asarray(importance), bounds)
    tile = pyramid.kernel_tile(block_k, platform=platform)
    table = pyramid.level_table(np.asarray(levels), block_k, tile=tile)
    return masks.blocks(table, block_q, tile)

  return mask


def _of_paper(block_k: int, platform: str, rows: int) -> Sparse:
  """Blocks of the paper's sizes; keys of all levels are `rows` of 32 tokens."""
  mask = _pyramid((0.10, 0.15, 0.15, 0.35), {platform: (128, block_k)})
  return Sparse(_PYRAMID * rows // 32, mask, _PYRAMID, (platform,))


_IMAGES = math.prod(_HIGH) + math.prod(_LOW)
SPARSE = {
  "69k dense": Sparse(18 * 3840),
  "69k radial, decay 1": Sparse(18 * 3840, _radial(18, 1.0, True)),
  "69k radial, decay 0.2": Sparse(18 * 3840, _radial(18, 0.2, True)),
  "115k dense": Sparse(30 * 3840),
  "115k radial, decay 0.95": Sparse(30 * 3840, _radial(30, 0.95, False)),
  "70k dense": Sparse(_TEXT + _IMAGES, queries=_IMAGES),
  "70k Scale-DiT": Sparse(_TEXT + _IMAGES, _scale_dit, _IMAGES),
  # The keys are those of all levels, 15 / 8 of the tokens.
  "75k dense": Sparse(_PYRAMID),
  "75k PSA, density 0.15": Sparse(
    _PYRAMID * 15 // 8, _pyramid((0.10, 0.15, 0.15, 0.35)), _PYRAMID
  ),
  "75k PSA, density 0.3": Sparse(
    _PYRAMID * 15 // 8, _pyramid((0.20, 0.30, 0.30, 0.70)), _PYRAMID
  ),
  # A block of 128 has 128, 64, 32 and 16 rows on a GPU; none has less than 16
  # there, and less than 128 on a TPU.
  "75k PSA, density 0.15, blocks of 128": _of_paper(128, "gpu", 60),
  "75k PSA, density 0.15, blocks of 64": _of_paper(64, "gpu", 64),
  "75k PSA, density 0.15, blocks of 32": _of_paper(32, "gpu", 80),
  "75k PSA, density 0.15, tiles of 128": _of_paper(128, "tpu", 128),
  "171k dense": Sparse(math.prod(_VIDEO)),
  "171k FreeSwim": Sparse(math.prod(_VIDEO), _freeswim),
}


def call(name: str) -> tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]:
  """Returns function(implementation, q, k, v) and its arguments, of SPARSE."""
  case = SPARSE[name]
  q, k = (
    jax.ShapeDtypeStruct((1, tokens, HEADS, DIM), jnp.bfloat16)
    for tokens in (case.queries or case.tokens, case.tokens)
  )

  def function(implementation, q, k, v):
    platform = implementation.removesuffix("_interpret")
    return attention.dot_product_attention(
      q,
      k,
      v,
      mask=case.mask(platform) if case.mask else None,
      implementation=implementation,
    )

  return function, (q, k, k)


class Tiles(NamedTuple):
  """What a kernel finds of a mask.

  Attributes:
    sides: queries and keys of a tile.
    seen: how many tiles are not empty.
    density: share of the tiles that are not.
    busy: share of the steps that find one, if all rows of tiles take as many as
      the fullest.
  """

  sides: tuple[int, int]
  seen: int
  density: float
  busy: float


def tiles(name: str, platform: str) -> Tiles:
  """Counts the tiles of a case of SPARSE, for the kernel of a platform."""
  case = SPARSE[name]
  q, k, _ = call(name)[1]
  mask = case.mask(platform) if case.mask else None
  sides = {"tpu": flash_tpu, "gpu": flash_gpu}[platform].block_sizes(q, k, mask)
  shape = q.shape[1], k.shape[1]
  if mask is None:
    rows, columns = (
      -(-n // side) for n, side in zip(shape, sides, strict=True)
    )
    return Tiles(sides, rows * columns, 1.0, 1.0)
  seen = mask.tile_states(*shape, *sides)[0, 0] != masks.EMPTY
  longest = seen.sum(axis=1).max()
  return Tiles(
    sides,
    int(seen.sum()),
    float(seen.mean()),
    float(seen.sum() / (len(seen) * longest)),
  )


def least_bytes(name: str, platform: str) -> int:
  """Returns the bytes that tiles read and outputs write, where none is cached.

  Queries and outputs once, keys and values of each tile that is not empty.
  """
  counted = tiles(name, platform)
  q = call(name)[1][0]
  row = DIM * q.dtype.itemsize * HEADS
  return row * (2 * q.shape[1] + 2 * counted.seen * counted.sides[1])
