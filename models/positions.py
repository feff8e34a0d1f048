"""Where a token stands: rotary positions, and what they are scaled by.

Rotary positions (arXiv 2104.09864) turn pairs of channels of queries and keys
by an angle, position times the frequency of the pair. Pairs are the first and
the second half of the channels, as in the weights that others publish.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import registry

# Fields of rotary positions, and of their scalings by type, with defaults; a
# None among the latter has to be given.
ROTARY = {
  "base": 10000.0,
  "fraction": 1.0,
  "scaling": None,
  "local_base": None,
}
SCALINGS: dict[str, dict[str, Any]] = {
  "linear": {"factor": None},
  "llama3": {
    "factor": None,
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
    "original_length": 8192,
  },
  "yarn": {
    "factor": None,
    "original_length": None,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    # 0: 0.1 ln(factor) + 1.
    "attention_factor": 0.0,
    "truncate": True,
  },
}


def rotate(
  x: jax.Array,
  positions: jax.Array,
  rotary: Mapping[str, Any],
  *,
  local: bool = False,
) -> jax.Array:
  """Turns queries or keys to their positions.

  Args:
    x: [batch, length, heads, head_dim].
    positions: integers [batch or 1, length].
    rotary: some of `base`, `fraction` (of the channels that turn, the first
      ones), `scaling` (a mapping with `type`, a key of SCALINGS, and its
      fields) and `local_base` (see `local`).
    local: whether the layer is one that sees near keys only; then `local_base`,
      where there is one, takes the place of `base` and `scaling`, as in Gemma 3
      and ModernBERT.

  Returns:
    An array like `x`; angles, their functions and the product are float32.

  Raises:
    ValueError: if `rotary` has other fields, or turns an odd number of
      channels.
  """
  frequencies, factor = rotary_frequencies(x.shape[-1], rotary, local=local)
  # [batch or 1, length, 1, half]
  angles = positions.astype(jnp.float32)[..., None, None] * frequencies.reshape(
    1, 1, 1, frequencies.size
  )
  return _turned(x, jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def rotate_grid(
  x: jax.Array, grid: Sequence[int], *, base: float = 10000.0
) -> jax.Array:
  """Turns queries or keys to their places in a grid of one to three axes.

  The pairs of channels are shared out among the axes, each with frequencies of
  its own that begin at one. What is left of a division goes to the last axes,
  as sides of an image are longer than videos have frames. With one axis it is
  `rotate` with the positions 0, 1, 2, ...

  Args:
    x: [batch, tokens, heads, head_dim]; first the tokens of the grid in
      row-major order, then any that have no place, which stay as they are.
    grid: sides of the grid, as (frames, rows, columns).
    base: the frequency of pair i of n is base^(-i / n).

  Raises:
    ValueError: if there are fewer pairs than axes, or fewer tokens than places.
  """
  tokens, dim, places = x.shape[1], x.shape[-1], math.prod(grid)
  if dim % 2 or dim // 2 < len(grid):
    raise ValueError(
      f"head_dim is {dim}; rotary positions of {len(grid)} axes need an even "
      f"number from {2 * len(grid)} on"
    )
  if tokens < places:
    raise ValueError(
      f"x has {tokens} tokens; a grid of {tuple(grid)} has {places}"
    )
  shares = _shares(dim // 2, len(grid))
  angles = [
    np.arange(side)[:, None] * float(base) ** -(np.arange(pairs) / pairs)[None]
    for side, pairs in zip(grid, shares, strict=True)
  ]

  def table(function, beyond):
    axes = [jnp.asarray(function(angle), jnp.float32) for angle in angles]
    pairs = jnp.concatenate(_over_grid(axes), axis=-1)
    # [1, tokens, 1, pairs]
    rest = ((0, tokens - places), (0, 0))
    return jnp.pad(pairs, rest, constant_values=beyond)[None, :, None]

  return _turned(x, table(np.cos, 1.0), table(np.sin, 0.0))


def sincos_grid(grid: Sequence[int], width: int) -> jax.Array:
  """Returns the table of positions of a grid, [places, width] in float32.

  Sines and then cosines of the last axis, then those of the axis before it, and
  so on: for an image columns come first, as in the code of MAE (arXiv
  2111.06377) and DiT (arXiv 2212.09748). Frequency i of n of an axis is
  10000^(-i / n). Axes share the channels evenly; what is left of a division,
  in pairs of a sine and a cosine, goes to the last axes (ours).

  Args:
    grid: sides of the grid, whose places come in row-major order.
    width: number of channels.

  Raises:
    ValueError: if `width` is odd, or has fewer pairs than there are axes.
  """
  if width % 2 or width // 2 < len(grid):
    raise ValueError(
      f"width is {width}; positions of {len(grid)} axes need an even number "
      f"from {2 * len(grid)} on"
    )
  axes = []
  for side, pairs in zip(grid, _shares(width // 2, len(grid)), strict=True):
    frequencies = 10000.0 ** -(np.arange(pairs) / pairs)
    angles = np.arange(side)[:, None] * frequencies[None]
    parts = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    axes.append(jnp.asarray(parts, jnp.float32))
  return jnp.concatenate(_over_grid(axes)[::-1], axis=-1)


def _over_grid(axes: Sequence[jax.Array]) -> list[jax.Array]:
  """Spreads a table [side, channels] an axis to [places, channels] each.

  In the program, not before it: tables of a long video would be constants of
  many megabytes.
  """
  grid = tuple(len(table) for table in axes)
  return [
    jax.lax.broadcast_in_dim(
      table, (*grid, table.shape[1]), (axis, len(grid))
    ).reshape(math.prod(grid), table.shape[1])
    for axis, table in enumerate(axes)
  ]


def _shares(pairs: int, axes: int) -> list[int]:
  """Shares out pairs of channels; what is left goes to the last axes."""
  each, left = divmod(pairs, axes)
  return [each + (axis >= axes - left) for axis in range(axes)]


def _turned(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns the pairs of the first channels, as many as there are cosines."""
  half = cos.shape[-1]
  first, second = (
    part.astype(jnp.float32)
    for part in (x[..., :half], x[..., half : 2 * half])
  )
  parts = [first * cos - second * sin, second * cos + first * sin]
  parts = [part.astype(x.dtype) for part in parts]
  if 2 * half < x.shape[-1]:
    parts.append(x[..., 2 * half :])
  return jnp.concatenate(parts, axis=-1)


def rotary_frequencies(
  head_dim: int, rotary: Mapping[str, Any], *, local: bool = False
) -> tuple[np.ndarray, float]:
  """Returns the radians a position of each pair, and a factor of its circle.

  Args:
    head_dim: channels of a head.
    rotary: see `rotate`.
    local: see `rotate`.

  Returns:
    (float32 [pairs], factor): the factor multiplies cosines and sines; it is 1
    but for YaRN, whose scores it makes sharper.

  Raises:
    ValueError: see `rotate`.
  """
  given = _filled("rotary", rotary, ROTARY)
  turning = int(head_dim * given["fraction"])
  if turning % 2 or not 0 < turning <= head_dim:
    raise ValueError(
      f"rotary fraction {given['fraction']} of head_dim {head_dim} is "
      f"{turning} channels; it must be an even number from 2 to {head_dim}"
    )
  base, scaling = given["base"], given["scaling"]
  if local and given["local_base"] is not None:
    base, scaling = given["local_base"], None
  frequencies = float(base) ** -(np.arange(0, turning, 2) / turning)
  factor = 1.0
  if scaling is not None:
    frequencies, factor = _scaled(frequencies, float(base), scaling)
  return frequencies.astype(np.float32), factor


def _scaled(
  frequencies: np.ndarray, base: float, scaling: Mapping[str, Any]
) -> tuple[np.ndarray, float]:
  """Returns frequencies for texts longer than those of training."""
  options = dict(scaling)
  kind = options.pop("type", None)
  if kind not in SCALINGS:
    raise registry.unknown("type of rotary scaling", str(kind), SCALINGS)
  options = _filled(f"rotary scaling {kind!r}", options, SCALINGS[kind])
  lacking = [name for name, value in options.items() if value is None]
  if lacking:
    raise ValueError(
      f"rotary scaling {dict(scaling)} needs {' and '.join(lacking)} too"
    )
  match kind:
    case "linear":
      return frequencies / options["factor"], 1.0
    case "llama3":
      return _llama3(frequencies, **options), 1.0
    case _:
      return _yarn(frequencies, base, **options)


def _llama3(
  frequencies: np.ndarray,
  *,
  factor: float,
  low_frequency_factor: float,
  high_frequency_factor: float,
  original_length: int,
) -> np.ndarray:
  """Slows down the slow pairs (Llama 3.1, arXiv 2407.21783, its code).

  A pair that turns `high_frequency_factor` times or more within the original
  length is left as it is, one that turns `low_frequency_factor` times or less
  is slowed down by `factor`, and between the two it is linear in the turns.
  """
  turns = original_length * frequencies / (2 * math.pi)
  kept = (turns - low_frequency_factor) / (
    high_frequency_factor - low_frequency_factor
  )
  kept = np.clip(kept, 0.0, 1.0)
  return frequencies * (kept + (1 - kept) / factor)


def _yarn(
  frequencies: np.ndarray,
  base: float,
  *,
  factor: float,
  original_length: int,
  beta_fast: float,
  beta_slow: float,
  attention_factor: float,
  truncate: bool,
) -> tuple[np.ndarray, float]:
  """Slows down the slow pairs, and scales scores (YaRN, arXiv 2309.00071).

  Section 3.2: as in Llama 3, but linear in the index of the pair, between the
  pairs that turn `beta_fast` and `beta_slow` times within the original length.
  Section 3.4: queries and keys grow by 0.1 ln(factor) + 1.
  """
  pairs = frequencies.size

  def pair_that_turns(times):
    return (
      pairs * math.log(original_length / (times * 2 * math.pi)) / math.log(base)
    )

  low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  # The bound is that of published code: the channels, not the pairs.
  low, high = max(low, 0), min(high, 2 * pairs - 1)
  slowed = (np.arange(pairs) - low) / (max(high - low, 0) or 0.001)
  slowed = np.clip(slowed, 0.0, 1.0)
  if not attention_factor:
    attention_factor = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
  return frequencies * (1 - slowed + slowed / factor), float(attention_factor)


def _filled(
  name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
  for field in given:
    if field not in defaults:
      raise registry.unknown(f"field of {name}", field, defaults)
  return {**defaults, **given}
