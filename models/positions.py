"""Where a token stands: rotary positions, and what they are scaled by.

Rotary positions (arXiv 2104.09864) turn pairs of channels of queries and keys
by an angle, position times the frequency of the pair. Pairs are the first and
the second half of the channels, as in the weights that others publish.
"""

import math
from collections.abc import Mapping
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
  half = frequencies.size
  # [batch or 1, length, 1, half]
  angles = positions.astype(jnp.float32)[..., None, None] * frequencies.reshape(
    1, 1, 1, half
  )
  cos, sin = jnp.cos(angles) * factor, jnp.sin(angles) * factor
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
