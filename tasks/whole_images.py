"""Restores whole images of any size: padding, tiles, self-ensemble."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import decoding
from tasks import mesh_rows, tiles

# Options of `ImageRestorer` for programs: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "tile": (
    0,
    "Side of the tiles that a large image is restored in, pixels of the "
    "degraded image; 0: the whole at once.",
  ),
  "overlap": (
    48,
    "The fewest pixels that neighbouring tiles share; half of them are "
    "cut off each.",
  ),
  "self_ensemble": (
    False,
    "Restore all eight flips and rotations of an image, and take the mean.",
  ),
}
# What XLA says of it when it runs, and when it compiles for a TPU.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory")
# Whether rows and columns change places, and which of the two is turned round.
_SYMMETRIES = tuple(itertools.product((False, True), repeat=3))


class ImageRestorer:
  """A network as a function of one image.

  Its sides are padded by reflection at the bottom and on the right to a
  multiple of the network's `size_multiple`, as HAT's and SwinIR's programs do,
  and what was padded is cut off. With `tile`, the padded image is cut into
  overlapping tiles of one size (`tasks.tiles`), so that one compiled program
  serves images of any size, and memory does not grow with them. That equals the
  whole image at once where no value depends on pixels further away than
  overlap // 2, as in SPAN with an overlap of 42 or more, and is an
  approximation where some do, as with means over the image.

  The self-ensemble is EDSR's (arXiv 1707.02921, section 3.4): the mean of what
  comes of the eight flips and rotations of the image, each turned back.
  """

  def __init__(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    tile: int = OPTIONS["tile"][0],
    overlap: int = OPTIONS["overlap"][0],
    self_ensemble: bool = False,
    batch_size: int = 16,
    step: Callable[[Any, jax.Array], jax.Array] | None = None,
  ):
    """Takes what it needs; compiles nothing.

    Args:
      model: of kind "restoration".
      variables: its variables; tiles are split over the mesh they are on.
      tile: side of a tile in pixels of the degraded image; 0 for none.
      overlap: the fewest pixels that neighbours share.
      self_ensemble: whether to restore eight times.
      batch_size: the most tiles at a time.
      step: what `jitted(model)` returned, to share what is compiled.

    Raises:
      ValueError: for tiles that do not fit the model.
    """
    if tile:
      tiles.check(tile, overlap, model.size_multiple)
    elif overlap < 0:
      raise ValueError(f"{overlap=} must be 0 or more.")
    self.scale = model.scale
    self._multiple = model.size_multiple
    self._tile, self._overlap = tile, overlap
    self._symmetries = _SYMMETRIES if self_ensemble else _SYMMETRIES[:1]
    self._batch_size = batch_size
    self._variables, self._mesh = variables, decoding.mesh_of(variables)
    self._step = step or jitted(model)

  def count(self, shape: Sequence[int]) -> int:
    """How many calls of the network an image of this shape needs."""
    return sum(
      len(self._batches(self._places(self._padded(turned_shape(s, shape)))))
      for s in self._symmetries
    )

  def __call__(
    self, image: np.ndarray, called: Callable[[], None] = lambda: None
  ) -> np.ndarray:
    """Restores one image.

    Args:
      image: uint8 [height, width, 3].
      called: after each call of the network, for a bar.

    Returns:
      float32 [scale * height, scale * width, 3], of which 1 is white; not
      clipped.

    Raises:
      ValueError: for an image of another shape or dtype, or one that a device
        has not the memory for.
    """
    check_image(image)
    total = 0.0
    for symmetry in self._symmetries:
      restored = self._restore(turn(symmetry, image), called)
      total = total + turn_back(symmetry, restored)
    return total / np.float32(len(self._symmetries))

  def _restore(self, image, called):
    height, width = image.shape[:2]
    rows, columns = self._padded(image.shape)
    padding = ((0, rows - height), (0, columns - width), (0, 0))
    padded = np.pad(image, padding, mode="reflect")
    places = self._places(padded.shape)
    # One number of rows for all batches of an image: one program.
    size = mesh_rows.whole_batch(min(self._batch_size, len(places)), self._mesh)
    s = self.scale
    whole = np.empty((s * rows, s * columns, 3), np.float32)
    for batch in self._batches(places):
      made = self._call(np.stack(list(tiles.cut(padded, batch))), size)
      # What was surplus is at the end.
      for place, tile in zip(batch, made[: len(batch)], strict=True):
        tiles.put(whole, tile, place, s)
      called()
    return whole[: s * height, : s * width]

  def _call(self, rows: np.ndarray, size: int) -> np.ndarray:
    """Restores tiles [n, tile, tile, 3], and as many copies as are missing."""
    filled = rows[np.arange(size) % len(rows)]
    try:
      made = self._step(self._variables, mesh_rows.place(filled, self._mesh))
      return mesh_rows.whole(made)
    except jax.errors.JaxRuntimeError as error:
      if not any(sign in str(error) for sign in _OUT_OF_MEMORY):
        raise
      raise ValueError(self._advice(*filled.shape[:3])) from error

  def _advice(self, count, height, width):
    less = f"a --tile below {self._tile}" if self._tile else "--tile=256"
    fewer = "" if count == 1 else ", or a --config.eval_batch_size below "
    return (
      f"A device has too little memory for {count} times {height} x {width} "
      f"pixels at a time. Less are needed with {less}{fewer}{fewer and count}."
    )

  def _places(self, shape):
    tile = self._tile or max(shape[:2])
    overlap = self._overlap if self._tile else 0
    # A whole image is a tile whose sides need not be equal.
    multiple = self._multiple if self._tile else 1
    return tiles.grid(shape, tile, overlap, multiple)

  def _batches(self, places):
    starts = range(0, len(places), self._batch_size)
    return [places[start : start + self._batch_size] for start in starts]

  def _padded(self, shape):
    return tuple(-(-n // self._multiple) * self._multiple for n in shape[:2])


def jitted(model: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
  """The network of uint8 images [batch, height, width, 3], jitted."""
  return jax.jit(
    lambda variables, rows: model.apply(variables, to_unit(rows), train=False)
  )


def to_unit(images: jax.Array) -> jax.Array:
  """uint8 images to float32 from 0 to 1."""
  return images.astype(jnp.float32) / 255


def turn(symmetry: tuple[bool, bool, bool], image: np.ndarray) -> np.ndarray:
  """One of the eight flips and rotations of an image [height, width, ...].

  Args:
    symmetry: whether rows and columns change places first, whether rows are
      in the opposite order then, and whether columns are.
    image: the image.
  """
  transposed, rows, columns = symmetry
  image = image.swapaxes(0, 1) if transposed else image
  return _flipped(image, rows, columns)


def turn_back(
  symmetry: tuple[bool, bool, bool], image: np.ndarray
) -> np.ndarray:
  """Undoes `turn`."""
  transposed, rows, columns = symmetry
  image = _flipped(image, rows, columns)
  return image.swapaxes(0, 1) if transposed else image


def turned_shape(
  symmetry: tuple[bool, bool, bool], shape: Sequence[int]
) -> tuple[int, int]:
  """Height and width of what `turn` makes of an image of a shape."""
  height, width = shape[:2]
  return (width, height) if symmetry[0] else (height, width)


def check_image(image: np.ndarray) -> None:
  """Raises ValueError unless it is uint8 [height, width, 3] with pixels."""
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(
      f"an image is {image.dtype} {list(image.shape)}; it must be uint8 "
      "[height, width, 3]."
    )
  if not image.size:
    raise ValueError(f"an image has no pixels: its shape is {image.shape}.")


def _flipped(image, rows, columns):
  image = image[::-1] if rows else image
  return image[:, ::-1] if columns else image
