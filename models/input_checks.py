"""What models refuse of the arrays that they are called with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def shape(name: str, x: Any, wanted: tuple[int | str, ...], kind: Any) -> None:
  """Raises ValueError unless an array has a shape and a kind of dtype.

  Args:
    name: what the error calls it.
    x: the array.
    wanted: its sides; a text stands for any.
    kind: `jnp.floating` or `jnp.integer`.
  """
  fits = len(x.shape) == len(wanted) and all(
    isinstance(n, str) or n == have
    for n, have in zip(wanted, x.shape, strict=True)
  )
  if not fits:
    raise ValueError(
      f"{name} has shape {x.shape}; the model needs "
      f"[{', '.join(map(str, wanted))}]"
    )
  if not jnp.issubdtype(x.dtype, kind):
    what = "integers" if kind is jnp.integer else "floating point"
    raise ValueError(f"{name} is {x.dtype}; it must be {what}")


def indices(name: str, x: Any, last: int, meaning: str) -> None:
  """Raises ValueError for one below 0 or beyond `last`, where all are known.

  Args:
    name: what the error calls them.
    x: integers.
    last: the greatest that there is.
    meaning: what this one stands for.
  """
  if isinstance(x, jax.core.Tracer) or not x.size:
    return
  # Of an array of several processes nobody knows all.
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return
  x = np.asarray(x)
  wrong = x[(x < 0) | (x > last)]
  if wrong.size:
    raise ValueError(
      f"{name} has {wrong.flat[0]}; they are 0 to {last - 1}, and {last} for "
      f"{meaning}"
    )
