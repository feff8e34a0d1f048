"""How other codebases lay out an array of ours."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Part:
  """Where in a tensor one of several arrays lies, as queries, keys and values.

  Attributes:
    index: which of them, from 0.
    count: how many there are.
    axis: axis of the tensor along which they follow one another.
    blocks: how often they do: first a block of each, then the next of each.
    shares: sizes of all, relative to each other; empty if they are equal.
  """

  index: int
  count: int
  axis: int = 0
  blocks: int = 1
  shares: tuple[int, ...] = ()

  def whole(self, shape: Shape) -> Shape:
    """Returns the shape of the tensor, given that of a part."""
    ends = self._ends()
    size = shape[self.axis] * ends[-1]
    size //= ends[self.index + 1] - ends[self.index]
    return (*shape[: self.axis], size, *shape[self.axis + 1 :])

  def cut(self, tensor: np.ndarray) -> np.ndarray:
    """Returns the part of a tensor."""
    shape, axis, ends = tensor.shape, self.axis, self._ends()
    split = (*shape[:axis], self.blocks, ends[-1], -1, *shape[axis + 1 :])
    own = range(ends[self.index], ends[self.index + 1])
    part = tensor.reshape(split).take(own, axis + 1)
    return part.reshape(*shape[:axis], -1, *shape[axis + 1 :])

  def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the tensor of all parts, in order."""
    shape, axis = parts[0].shape, self.axis
    split = (*shape[:axis], self.blocks, -1, *shape[axis + 1 :])
    blocks = [part.reshape(split) for part in parts]
    joined = np.concatenate(blocks, axis + 1)
    return joined.reshape(*shape[:axis], -1, *shape[axis + 1 :])

  def _ends(self) -> list[int]:
    """Where each part begins in a block, in shares, and where the last ends."""
    shares = self.shares or (1,) * self.count
    return [sum(shares[:i]) for i in range(len(shares) + 1)]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A way to store an array elsewhere.

  Attributes:
    shape: maps the shape of our array to that of the tensor.
    load: maps the tensor and the shape of our array to our array.
    store: maps our array to the tensor.
    part: which part of a tensor this tensor is, if it is one.
  """

  shape: Callable[[Shape], Shape]
  load: Callable[[np.ndarray, Shape], np.ndarray]
  store: Callable[[np.ndarray], np.ndarray]
  part: Part | None = None

  def whole(self, shape: Shape) -> Shape:
    """Maps the shape of our array to that of the tensor that it is in."""
    shape = self.shape(shape)
    return self.part.whole(shape) if self.part else shape

  def read(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
    """Maps the tensor that our array is in, and our shape, to our array."""
    return self.load(self.part.cut(tensor) if self.part else tensor, shape)

  def part_of(self, *args: int, **fields: int) -> "Layout":
    """Returns this layout for a part; takes the fields of `Part`."""
    return dataclasses.replace(self, part=Part(*args, **fields))


def matrix(inputs: int, trailing: Shape = ()) -> Layout:
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


def untransposed(inputs: int) -> Layout:
  """A kernel whose first `inputs` axes are summed over, as [in, out]."""

  def sizes(shape):
    return int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))

  return Layout(
    shape=sizes,
    load=lambda tensor, shape: tensor.reshape(shape),
    store=lambda array: array.reshape(sizes(array.shape)),
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
DENSE = matrix(inputs=1)
# Sums over heads and channels of a head.
DENSE_HEADS = matrix(inputs=2)
DENSE_AS_CONV = matrix(inputs=1, trailing=(1, 1))
# Ours is [height, width, in, out], theirs [out, in, height, width].
CONV = Layout(
  shape=lambda shape: (shape[3], shape[2], shape[0], shape[1]),
  load=lambda tensor, shape: tensor.transpose(2, 3, 1, 0),
  store=lambda array: array.transpose(3, 2, 0, 1),
)

Path = tuple[str, ...]
# From the path of a variable of ours, without its collection, to the name and
# the layout of its counterpart.
WeightMap = Callable[[Path], tuple[str, Layout]]
