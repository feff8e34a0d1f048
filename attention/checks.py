"""What arguments are refused, in one voice: the name, the value, what fits.

JAX converts in silence: a mask of zeros and ones becomes scores, lengths of 3.7
become 3, the string "False" is true. Here such values are errors, the same for
the reference and for kernels, before anything is computed.
"""

import math
import numbers
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

FLOATING = "floating point, such as float32 or bfloat16"


def floating(name: str, x: object) -> None:
  """Raises ValueError unless `x` is an array of floating-point numbers."""
  _kind(name, x, jnp.floating, FLOATING)


def integers(name: str, x: object) -> None:
  """Raises ValueError unless `x` is an array of integers."""
  _kind(name, x, jnp.integer, "integers")


def booleans(name: str, x: object) -> None:
  """Raises ValueError unless `x` is an array of booleans."""
  fits = (
    "booleans, True where a key is seen; what is added to scores goes into "
    "attention.scores.bias"
  )
  _kind(name, x, np.bool_, fits)


def same_floats(**arrays: object) -> None:
  """Raises ValueError unless all are floating point and of one dtype."""
  (first, like), *_ = arrays.items()
  for name, x in arrays.items():
    floating(name, x)
    if x.dtype != like.dtype:
      raise ValueError(
        f"{name} is {x.dtype} and {first} is {like.dtype}; both must be of one "
        f"dtype, so convert one: {name}.astype({first}.dtype)"
      )


def lengths(name: str, x: object, batch: int) -> None:
  """Raises ValueError unless `x` is None or integers [batch]."""
  if x is None:
    return
  integers(name, x)
  if x.shape != (batch,):
    raise ValueError(
      f"{name} has shape {x.shape}; it must be [batch] = {(batch,)}"
    )


def flag(name: str, value: object) -> None:
  """Raises ValueError unless `value` is True or False."""
  if not isinstance(value, bool | np.bool_):
    raise ValueError(f"{name} is {_shown(value)}; it must be True or False")


def whole(name: str, value: object, least: int | None = None) -> None:
  """Raises ValueError unless `value` is an integer of at least `least`."""
  if not isinstance(value, numbers.Integral) or isinstance(value, bool):
    raise ValueError(
      f"{name} is {_shown(value)}; it must be a whole number that is known "
      "before the program runs"
    )
  if least is not None and value < least:
    raise ValueError(f"{name} is {value}; it must be at least {least}")


def wholes(
  name: str, values: object, least: int | None = None, entry: str = "a side"
) -> None:
  """Raises ValueError unless `values` are several integers, as a tuple is.

  Args:
    name: of them.
    values: what was given.
    least: the least that each may be.
    entry: what one of them is called.
  """
  if isinstance(values, str) or not hasattr(values, "__len__"):
    raise ValueError(
      f"{name} is {_shown(values)}; it must be a tuple of whole numbers"
    )
  for value in values:
    whole(f"{entry} of {name}", value, least)


def number(name: str, value: object, *, above: float | None = None) -> None:
  """Raises ValueError unless `value` is a finite number, beyond `above`."""
  fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not fits or not math.isfinite(value):
    raise ValueError(
      f"{name} is {_shown(value)}; it must be a number, finite and known "
      "before the program runs"
    )
  if above is not None and value <= above:
    raise ValueError(f"{name} is {value}; it must be above {above}")


def share(name: str, value: object, *, positive: bool = False) -> None:
  """Raises ValueError unless `value` is a number from 0, or above it, to 1."""
  number(name, value)
  if not 0 <= value <= 1 or (positive and not value):
    fits = "above 0 and at most 1" if positive else "from 0 to 1"
    raise ValueError(f"{name} is {value}; it must be a share, {fits}")


def choice(name: str, value: object, known: Iterable[str]) -> None:
  """Raises ValueError unless `value` is one of the names that are known."""
  known = tuple(known)
  if value not in known:
    raise ValueError(
      f"{name} is {_shown(value)}; it must be one of {', '.join(known)}"
    )


def instance(name: str, value: object, kind: type, maker: str) -> None:
  """Raises ValueError unless `value` is what `maker` makes."""
  if not isinstance(value, kind):
    raise ValueError(f"{name} is {_shown(value)}; it takes what {maker} makes")


def no_scores(q: Array, k: Array) -> str | None:
  """Returns why no kernel is built for what has no scores, else None.

  The lengths, and the height and the width of images, are axes 1 to -3.
  """
  if 0 not in (*q.shape[:-1], *k.shape[:-1]):
    return None
  return (
    f"there are no scores: q has shape {q.shape} and k {k.shape}, so that "
    "batch, q_len or kv_len is 0"
  )


def _kind(name: str, x: object, kind: type, fits: str) -> None:
  if not hasattr(x, "dtype"):
    raise ValueError(f"{name} is {_shown(x)}; it must be an array of {fits}")
  if not jnp.issubdtype(x.dtype, kind):
    raise ValueError(
      f"{name} is an array of {x.dtype}, of shape {x.shape}; it must be {fits}"
    )


def _shown(value: object) -> str:
  """Shows a value, of an array its dtype and shape."""
  if hasattr(value, "dtype") and hasattr(value, "shape"):
    return f"an array of {value.dtype}, of shape {value.shape},"
  text = repr(value)
  return text if len(text) < 80 else f"{text[:77]}..."
