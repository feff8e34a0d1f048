"""Scale-DiT's masks: text, an image, and a smaller image of the same.

Tokens come as [text, high, low], each image in row-major order (arXiv
2510.16325; PeterYYZhang/Scale-DiT, `build_mask.ipynb`). Text sees text and
high. High sees text, its own neighbours, and low below its own window and below
the windows before and after it *in raster order*, which goes on at the ends of
rows as the released code has it. Low sees its neighbours alone.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from attention import checks, permutations
from attention.grid_masks import GridWindow
from attention.mask_base import Blocks, Mask

# Coordinates that no window reaches: the groups lie this far apart.
_APART = 1 << 24


def scale_dit_tokens(
  text_tokens: int,
  high: Sequence[int],
  low: Sequence[int],
  *,
  window: int = 16,
) -> Mask:
  """Scale-DiT's mask of tokens, as it is while sampling.

  A token of high sees those at most half a window away along each axis, cut at
  the borders, and a token of low those at most half a window of low away.

  Args:
    text_tokens: tokens of the text, the first ones.
    high: height and width of the image, in tokens.
    low: height and width of the small image, or (0, 0) for none.
    window: side of a window of high.

  Returns:
    A mask of tokens in the order above; see `Mask.reordered`.

  Raises:
    ValueError: if high is not a whole multiple of low, the same for both axes,
      or windows do not divide them.
  """
  scale = _check(text_tokens, high, low, window)
  sizes = (text_tokens, math.prod(high), math.prod(low))
  group = np.repeat(np.arange(3), sizes)
  row, column = np.zeros((2, sum(sizes)), int)
  own = np.full(sum(sizes), -_APART)
  for number, shape in ((1, high), (2, low)):
    row[group == number], column[group == number] = _places(shape)
    side = window if number == 1 else window // scale
    if math.prod(low):
      own[group == number] = _window_numbers(shape, side)
  radius = np.array([0, window // 2, window // scale // 2])[group]
  no_text = group != 0
  row += group * _APART
  # Text and what it shows itself to: text sees groups 0 and 1, high 0.
  with_text = _bounds((0 * group, np.array([1, 0, -1])[group], group))
  near = _bounds(
    (
      np.where(no_text, row - radius, 1),
      np.where(no_text, row + radius, 0),
      row,
    ),
    (column - radius, column + radius, column),
  )
  if not math.prod(low):
    return with_text | near
  is_high = group == 1
  below = _bounds(
    (
      np.where(is_high, own - 1, 1),
      np.where(is_high, own + 1, 0),
      np.where(group == 2, own, -_APART),
    )
  )
  return with_text | near | below


def scale_dit_order(
  text_tokens: int,
  high: Sequence[int],
  low: Sequence[int],
  *,
  window: int = 16,
  hilbert: bool = False,
) -> np.ndarray:
  """Returns the order of tokens in which windows are runs of them.

  Windows of high are in row-major order, and so are those of low if a side of
  it is longer than a window of high, as in the released code.

  Args:
    text_tokens, high, low, window: as for `scale_dit_tokens`.
    hilbert: whether tokens go along Hilbert's curve within a window of high,
      else in row-major order.
  """
  scale = _check(text_tokens, high, low, window)
  arrange = permutations.hilbert_windows if hilbert else permutations.windows
  of_high = arrange(high, (window, window))
  of_low = math.prod(low)
  if max(low) > window:
    of_low = permutations.windows(low, (window // scale,) * 2)
  return permutations.joined(text_tokens, of_high, of_low)


def scale_dit_blocks(
  text_tokens: int,
  high: Sequence[int],
  low: Sequence[int],
  *,
  window: int = 16,
  hilbert: bool = False,
  block_q: int = 128,
  block_k: int = 64,
) -> Mask:
  """Scale-DiT's mask of blocks, for tokens in the order of `scale_dit_order`.

  A block is visible as a whole where a token of it sees another, so that tokens
  see more than `scale_dit_tokens` shows them.

  Args:
    text_tokens, high, low, window, hilbert: as for `scale_dit_order`.
    block_q: queries in a block.
    block_k: keys in a block.
  """
  scale = _check(text_tokens, high, low, window)
  checks.whole("block_q", block_q, 1)
  checks.whole("block_k", block_k, 1)
  order = scale_dit_order(
    text_tokens, high, low, window=window, hilbert=hilbert
  )
  place = permutations.inverse(order)
  length = len(order)
  table = np.zeros((-(-length // block_q), -(-length // block_k)), bool)
  first_low = text_tokens + math.prod(high)

  def mark(queries, keys):
    table[place[queries] // block_q, place[keys] // block_k] = True

  # [rows, columns] of the numbers of tokens.
  of_high = np.arange(text_tokens, first_low).reshape(high)
  of_low = np.arange(first_low, length).reshape(low)
  _mark_near(mark, of_high, window // 2)
  _mark_near(mark, of_low, window // scale // 2)
  if math.prod(low):
    _mark_below(mark, of_high, of_low, window, scale)
  # Ranges, not pairs: text is where it was.
  text_rows, text_columns = (
    -(-text_tokens // block_q),
    -(-text_tokens // block_k),
  )
  table[:text_rows, : -(-first_low // block_k)] = True
  table[: -(-first_low // block_q), :text_columns] = True
  return Blocks(table[None, None], block_q, block_k)


def _mark_near(mark, tokens, radius):
  """Calls mark(queries, keys) for tokens at most `radius` away on both axes."""
  if not tokens.size:
    return
  for down, right in itertools.product(range(-radius, radius + 1), repeat=2):
    queries, keys = (
      tokens[_shifted(sign * down)][:, _shifted(sign * right)]
      for sign in (-1, 1)
    )
    mark(queries, keys)


def _shifted(by: int) -> slice:
  return slice(max(by, 0), min(by, 0) or None)


def _mark_below(mark, of_high, of_low, window, scale):
  """The same for high and the windows of low at, before and after its own."""
  # [window, tokens in it]
  high = of_high.reshape(-1)[permutations.windows(of_high.shape, [window] * 2)]
  side = window // scale
  low = of_low.reshape(-1)[permutations.windows(of_low.shape, [side] * 2)]
  high, low = high.reshape(-1, window**2), low.reshape(-1, side**2)
  for by in (-1, 0, 1):
    queries, keys = high[_shifted(-by)], low[_shifted(by)]
    mark(queries[:, :, None], keys[:, None, :])


def _places(shape: Sequence[int]) -> np.ndarray:
  return np.indices(shape).reshape(2, -1)


def _window_numbers(shape: Sequence[int], side: int) -> np.ndarray:
  """Returns the number of each token's window, windows in row-major order."""
  row, column = _places(shape) // side
  return row * (shape[1] // side) + column


def _bounds(*axes: tuple[np.ndarray, ...]) -> GridWindow:
  return GridWindow(tuple(x.astype(np.int32) for axis in axes for x in axis))


def _check(text_tokens, high, low, window) -> int:
  """Returns how many times as large high is as low, 1 if there is no low."""
  checks.whole("text_tokens", text_tokens, 0)
  checks.whole("window", window, 1)
  for name, shape in (("high", high), ("low", low)):
    checks.wholes(name, shape, 0)
    if len(shape) != 2:
      raise ValueError(f"{name} is {tuple(shape)}; it must be (height, width)")
  if any(side % window or not side for side in high):
    raise ValueError(
      f"window is {window}; it must divide height and width of high, "
      f"{tuple(high)}"
    )
  if not any(low):
    return 1
  scale = high[0] // low[0] if all(low) else 0
  if any(a != scale * b for a, b in zip(high, low, strict=True)):
    raise ValueError(
      f"low is {tuple(low)}; height and width of high, {tuple(high)}, must be "
      "one multiple of those of low"
    )
  if window % scale:
    raise ValueError(
      f"window is {window}; high is {scale} times as large as low, so it must "
      f"be a multiple of {scale}"
    )
  return scale
