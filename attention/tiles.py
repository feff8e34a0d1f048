"""The language of score modifications and masks: functions of one tile.

The scores of attention are an array [batch, heads, q_len, kv_len] that a fused
kernel never holds as a whole: it sees one tile of it at a time. So what acts on
scores is written for a tile: a function of the tile's positions and of
*values*, the parts that belong to the tile of the arrays it carries, its
*operands*. The reference evaluates the same function with all positions as one
tile, once for each batch element and head. There is one definition for both.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class Tile(NamedTuple):
  """Where a tile of scores lies.

  Attributes:
    batch: index of the batch element, a scalar.
    head: index of the query head, a scalar.
    q_index: positions of the queries, [rows, 1].
    k_index: positions of the keys, [1, columns].
  """

  batch: Array
  head: Array
  q_index: Array
  k_index: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operand:
  """An array that a tile function reads, and the meaning of its axes.

  Attributes:
    array: the array.
    axes: a letter an axis: "b" batch, "h" query heads, "q" queries, "k" keys,
      "r" any other axis. "b" and "h" come first, and the rest is one of "",
      "q", "k", "qk", "qr" and "rk".

  The value of an operand on a tile of [rows, columns] scores is an array of two
  axes that broadcasts against it: [1, 1], [rows, 1], [1, columns] or [rows,
  columns]; with "r" it is [rows, r] or [r, columns].
  """

  array: Array | np.ndarray
  axes: str = dataclasses.field(metadata={"static": True})

  def __post_init__(self):
    # Transformations build trees of placeholders, which have no axes.
    if not hasattr(self.array, "ndim"):
      return
    if self.inner not in ("", "q", "k", "qk", "qr", "rk"):
      raise ValueError(
        f"axes is {self.axes!r}; it must be 'b' and 'h' where wanted, then one "
        "of '', 'q', 'k', 'qk', 'qr' and 'rk'"
      )

  @property
  def inner(self) -> str:
    """The axes after batch and heads."""
    return self.axes.removeprefix("b").removeprefix("h")

  def check(
    self, name: str, batch: int, heads: int, q_len: int, kv_len: int
  ) -> None:
    """Raises ValueError unless the axes have the sizes of the scores."""
    sizes = {"b": batch, "h": heads, "q": q_len, "k": kv_len}
    fits = [sizes.get(axis, "any") for axis in self.axes]
    if self.array.ndim != len(fits) or any(
      want not in ("any", have)
      for have, want in zip(self.array.shape, fits, strict=True)
    ):
      raise ValueError(
        f"{name} has shape {self.array.shape}; with axes {self.axes!r} it must "
        f"be [{', '.join(map(str, fits))}]"
      )


def squeezed(array: Array, axes: str) -> Operand:
  """Returns an operand without the axes of `array` that are of size one."""
  kept = [
    axis for axis, size in zip(axes, array.shape, strict=True) if size != 1
  ]
  shape = [size for size in array.shape if size != 1]
  return Operand(array.reshape(shape), "".join(kept))


def unsqueezed(operand: Operand, axes: str) -> Array:
  """Returns the array of an operand with all of `axes`."""
  sizes = dict(zip(operand.axes, operand.array.shape, strict=True))
  array = jnp.asarray(operand.array)
  return array.reshape([sizes.get(axis, 1) for axis in axes])


def as_value(array: Array, inner: str) -> Array:
  """Gives what is left of an operand its two axes as the value on a tile."""
  match inner:
    case "":
      return array.reshape(1, 1)
    case "q":
      return array[:, None]
    case "k":
      return array[None, :]
    case _:
      return array


def on_one_score(
  function: Callable[..., Array],
  operands: Sequence[Operand],
  scores: bool = True,
) -> jax.ShapeDtypeStruct:
  """Returns shape and dtype of a tile function on a tile of one score.

  Args:
    function: `function(score, tile, *values)`.
    operands: what the values are taken from.
    scores: whether there is a score; it is None if not.
  """
  index = jax.ShapeDtypeStruct((), jnp.int32)
  place = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  values = []
  for operand in operands:
    # "r" has its size, all other axes are one query or one key.
    sizes = dict(zip(operand.axes, operand.array.shape, strict=True))
    shape = tuple(sizes["r"] if a == "r" else 1 for a in operand.inner)
    shape = shape if len(shape) == 2 else (1, 1)
    values.append(jax.ShapeDtypeStruct(shape, operand.array.dtype))
  score = jax.ShapeDtypeStruct((1, 1), jnp.float32) if scores else None
  return jax.eval_shape(
    function, score, Tile(index, index, place, place), *values
  )


def over_all_scores(
  function: Callable[..., Array],
  operands: Sequence[Operand],
  shape: tuple[int, int, int, int],
  scores: Array | None = None,
  reduce: Callable[[Array], Array] = lambda x: x,
) -> Array:
  """Evaluates a tile function on whole score matrices: the reference.

  Args:
    function: `function(score, tile, *values)`; `score` is None if `scores` is.
    operands: what the values are taken from.
    shape: batch, heads, q_len, kv_len.
    scores: array of that shape, or None.
    reduce: what to make of each matrix [q_len, kv_len]. Here and not of the
      result, because a function of no head gives one matrix for all of them.

  Returns:
    [batch, heads, q_len, kv_len], or what `reduce` leaves of it.
  """
  batch, heads, q_len, kv_len = shape
  q_index = jnp.arange(q_len)[:, None]
  k_index = jnp.arange(kv_len)[None, :]

  def on_tile(batch_index, head_index, score, *arrays):
    tile = Tile(batch_index, head_index, q_index, k_index)
    values = [
      as_value(jnp.asarray(array), operand.inner)
      for array, operand in zip(arrays, operands, strict=True)
    ]
    value = function(score, tile, *values)
    return reduce(jnp.broadcast_to(value, (q_len, kv_len)))

  score_axis = None if scores is None else 0
  over_heads = jax.vmap(
    on_tile,
    (None, 0, score_axis, *(0 if "h" in o.axes else None for o in operands)),
  )
  over_batch = jax.vmap(
    over_heads,
    (0, None, score_axis, *(0 if "b" in o.axes else None for o in operands)),
  )
  return over_batch(
    jnp.arange(batch), jnp.arange(heads), scores, *(o.array for o in operands)
  )
