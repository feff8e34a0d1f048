"""How other codebases lay out an array of ours."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """A way to store an array elsewhere.

  Attributes:
    shape: maps the shape of our array to that of the tensor.
    load: maps the tensor and the shape of our array to our array.
    store: maps our array to the tensor.
  """

  shape: Callable[[tuple[int, ...]], tuple[int, ...]]
  load: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  store: Callable[[np.ndarray], np.ndarray]


def matrix(inputs: int, trailing: tuple[int, ...] = ()) -> Layout:
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
