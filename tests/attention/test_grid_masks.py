"""Inward windows and Radial Attention against formulas and known counts."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, permutations
from tests.attention.test_masks import check_states

GRIDS = [
  ((2, 5, 6), (None, 1, 2)),
  ((1, 4, 7), (None, 1, 1)),
  ((3, 4, 4), (0, 2, 1)),
  ((9,), (2,)),
  ((3, 5), (0, None)),
]


def window(shape, radius, inward):
  """FreeSwim (arXiv 2511.14712), section 3.1, along each axis."""
  visible = True
  coordinates = np.indices(shape).reshape(len(shape), -1)
  for position, side, r in zip(coordinates, shape, radius, strict=True):
    if r is None:
      continue
    p, key = position[:, None], position[None, :]
    first, last = p - r, p + r
    if inward:
      first, last = (
        first - np.maximum(0, p + r - side + 1),
        last + np.maximum(0, r - p),
      )
    visible &= (first <= key) & (key <= last)
  return np.broadcast_to(visible, (math.prod(shape),) * 2)


@pytest.mark.parametrize("inward", [True, False])
@pytest.mark.parametrize(("shape", "radius"), GRIDS)
def test_window_equals_formula(shape, radius, inward):
  tokens = math.prod(shape)
  mask = masks.inward_window(shape, radius, inward=inward)
  visible = window(shape, radius, inward)
  np.testing.assert_array_equal(mask.dense(tokens, tokens)[0, 0], visible)
  for block_q, block_k in ((1, 1), (4, 8), (7, 5), (99, 3)):
    states = mask.tile_states(tokens, tokens, block_q, block_k)
    assert isinstance(states, np.ndarray)
    exact = block_q == block_k == 1
    check_states(mask, visible[None, None], block_q, block_k, exact)


def test_every_small_inward_window():
  for height, width, h, w in itertools.product(
    range(1, 6), range(1, 6), range(3), range(3)
  ):
    mask = masks.inward_window((height, width), (h, w))
    tokens = height * width
    # Tiles of one score are never mixed: the states are the mask.
    states = mask.tile_states(tokens, tokens, 1, 1)[0, 0]
    visible = window((height, width), (h, w), True)
    np.testing.assert_array_equal(states == masks.FULL, visible)
    np.testing.assert_array_equal(states == masks.EMPTY, ~visible)


def test_every_query_sees_as_many_keys():
  shape, radius = (2, 9, 11), (None, 2, 3)
  visible = masks.inward_window(shape, radius).dense(198, 198)
  np.testing.assert_array_equal(visible.sum(axis=-1), 2 * 5 * 7)
  cut = masks.inward_window(shape, radius, inward=False).dense(198, 198)
  assert cut.sum(axis=-1).min() == 2 * 3 * 4


def test_windows_of_the_whole_grid_are_full_attention():
  mask = masks.inward_window((2, 3, 4), (None, 1, 2))
  assert mask.dense(24, 24).all()
  assert (mask.tile_states(24, 24, 8, 8) == masks.FULL).all()


def test_published_count_of_freeswim():
  """1088 x 1920: each query sees 34 503 of 171 360 tokens (fact sheet)."""
  shape = (21, 68, 120)
  mask = masks.inward_window(shape, (None, 480 // 16 // 2, 832 // 16 // 2))
  first, last, position = (np.stack(mask.bounds[i::3]) for i in range(3))
  assert math.prod(shape) == 171_360 == position.shape[1]
  corner = (first[:, :1] <= position) & (position <= last[:, :1])
  assert corner.all(axis=0).sum() == 34_503
  np.testing.assert_array_equal(
    np.prod(last - first + 1, axis=0) * shape[0], 34_503
  )


@pytest.mark.parametrize(
  "mask",
  [
    masks.inward_window((2, 4, 6), (None, 1, 1)),
    ~masks.inward_window((2, 4, 6), (None, 1, 1))
    | masks.inward_window((48,), (3,)),
    masks.dense(jax.random.bernoulli(jax.random.key(1), 0.5, (48, 48))),
  ],
)
def test_reordered_masks(mask):
  order = permutations.windows((2, 4, 6), (2, 2, 3))
  visible = np.asarray(mask.dense(48, 48))[0, 0]
  moved = mask.reordered(order)
  np.testing.assert_array_equal(
    moved.dense(48, 48)[0, 0], visible[np.ix_(order, order)]
  )
  check_states(moved, visible[np.ix_(order, order)][None, None], 4, 8, False)
  some = mask.reordered(order[5:9], order[:30])
  np.testing.assert_array_equal(
    some.dense(4, 30)[0, 0], visible[np.ix_(order[5:9], order[:30])]
  )


def test_masks_of_places_are_not_reordered():
  with pytest.raises(ValueError, match="Band, cannot be reordered"):
    masks.sliding_window(3).reordered(np.arange(4))


def test_fewer_tiles_where_a_window_is_a_run():
  """Fact sheet of FreeSwim, trap 9; the tokens of its largest video."""
  shape = (21, 68, 120)
  mask = masks.inward_window(shape, (None, 15, 26))
  tiles = lambda mask: (mask.tile_states(171_360, 171_360, 512, 512) > 0).mean()
  assert tiles(mask) > 0.6
  order = permutations.windows(shape, (21, 4, 2))
  assert tiles(mask.reordered(order)) < 0.3


def _neighbourhood(q, k, v, shape, radius):
  """Neighbourhood attention as NATTEN starts its windows (arXiv 2204.07143).

  Its `get_window_start`, a query at a time, over the last two axes; all frames.
  """
  _, *sides = shape
  q, k, v = (np.asarray(x, np.float64).reshape(*shape, -1) for x in (q, k, v))
  out = np.zeros(v.shape)
  for place in np.ndindex(*shape):
    window = [slice(None)]
    for at, side, r in zip(place[1:], sides, radius, strict=True):
      start = max(at - r, 0)
      if at + r >= side:
        start += side - at - r - 1
      window.append(slice(start, start + 2 * r + 1))
    keys, values = (x[tuple(window)].reshape(-1, x.shape[-1]) for x in (k, v))
    scores = keys @ q[place] / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max())
    out[place] = weights @ values / weights.sum()
  return out.reshape(-1, v.shape[-1])


@pytest.mark.parametrize(
  ("shape", "ordered"), [((1, 8, 12), False), ((3, 4, 8), True)]
)
def test_inward_windows_are_neighbourhood_attention(shape, ordered):
  """FreeSwim's section 8 (iv) and (v), in the kernel."""
  tokens, radius = math.prod(shape), (1, 2)
  arrays = np.random.default_rng(0).standard_normal((3, 1, tokens, 1, 16))
  q, k, v = (jnp.asarray(x, jnp.float32) for x in 2 * arrays)
  mask, order = masks.inward_window(shape, (None, *radius)), np.arange(tokens)
  if ordered:
    order = permutations.windows(shape, (shape[0], 4, 4))
    mask = mask.reordered(order)
  out = attention.dot_product_attention(
    *(x[:, order] for x in (q, k, v)), mask=mask, implementation="gpu_interpret"
  )
  expected = _neighbourhood(*(x[0, :, 0] for x in (q, k, v)), shape, radius)
  np.testing.assert_allclose(out[0, :, 0], expected[order], atol=1e-5)


def test_window_errors():
  with pytest.raises(ValueError, match=r"radius is \(1,\); a grid of \(2, 3\)"):
    masks.inward_window((2, 3), (1,))
  with pytest.raises(ValueError, match=r"radius is \(1, -1\)"):
    masks.inward_window((2, 3), (1, -1))


@pytest.mark.parametrize(
  ("frames", "tokens"), [(1, 1), (2, 3), (12, 4), (12, 1), (9, 16), (5, 64)]
)
def test_radial_tokens_equal_equation_4(frames, tokens):
  mask = masks.radial_tokens(frames, tokens)
  seen = np.asarray(mask.operand.array)
  expected = np.zeros_like(seen)
  for i, j in itertools.product(range(frames), range(frames)):
    d = abs(i - j)
    band = 2 ** math.floor(math.log2(max(d, 1)))
    for m, n in itertools.product(range(tokens), range(tokens)):
      near = band <= tokens and abs(m - n) + 1 <= tokens / band
      diagonal = d % math.ceil(band / tokens) == 0 and m == n
      expected[i * tokens + m, j * tokens + n] = near or diagonal or j == 0
  np.testing.assert_array_equal(seen, expected)
  n = frames * tokens
  if n <= 48:
    np.testing.assert_array_equal(mask.dense(n, n)[0, 0], expected)


@pytest.mark.parametrize(("frames", "tokens"), [(8, 4), (32, 8), (64, 4)])
def test_radial_tokens_are_few(frames, tokens):
  """The bounds of the paper, section 3.1 of the fact sheet."""
  f, s = frames, tokens
  visible = masks.radial_tokens(f, s).operand.array.sum()
  log_s, log_f = int(math.log2(s)), math.ceil(math.log2(f))
  bound = 4 * s**2 * f
  bound += sum(2 ** (r + 1) * f * 2 * s**2 // 2**r for r in range(1, log_s + 1))
  bound += sum(2 ** (log_s + 1) * f * s for _ in range(log_s + 1, log_f))
  assert visible <= bound
  assert visible < 4 * s * (f * s) * (math.log2(f * s) - math.log2(s))


@functools.lru_cache
def radial_table(*args, **kwargs):
  return masks.radial_blocks(*args, **kwargs).table[0, 0]


@pytest.mark.parametrize(
  ("frames", "tokens", "options", "blocks", "kept"),
  [
    (8, 256, {}, 16, 232),
    (16, 512, {"decay": 0.5}, 64, 2_640),
    (18, 3840, {"decay": 0.2}, 540, 83_728),
    (18, 3840, {}, 540, 125_656),
    (30, 3840, {"decay": 0.95, "sink": False}, 900, 222_452),
  ],
)
def test_radial_blocks_of_the_released_code(
  frames, tokens, options, blocks, kept
):
  table = radial_table(frames, tokens, **options)
  assert table.shape == (blocks, blocks)
  assert table.sum() == kept
  # Section 8 (i): frames of whole blocks have a pattern for each distance.
  side = tokens // 128
  for i, j in itertools.product(range(frames), range(frames)):
    part = table[i * side : (i + 1) * side, j * side : (j + 1) * side]
    d = 0 if j == 0 and options.get("sink", True) else abs(i - j)
    expected = _blocks_at(d, tokens, options.get("decay", 1.0))
    assert (part == expected).all(), (i, j)


@functools.cache
def _blocks_at(d, tokens, decay):
  """Sections 3.2 and 3.3: by how far two blocks of 128 are apart alone."""
  side = tokens // 128
  apart = np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
  if d <= 1:
    return apart >= 0
  width = 2 ** len(f"{tokens:b}") / 2 ** len(f"{d:b}")
  if width < 128 and d % int(128 / width):
    return apart < 0
  half = max(width * decay, 128)
  # [blocks apart, row of the one, column of the other]
  offset = np.arange(side)[:, None, None] * 128
  inside = np.arange(128)
  band = np.abs(offset + inside[:, None] - inside[None, :]) <= half
  filled = band.sum(axis=1)  # Rows that are set, of each column.
  columns = (filled > 0).sum(axis=1)
  high = (3 * filled > 128).sum(axis=1)
  return (10 * high > 6 * columns)[apart]


def test_frames_that_radial_blocks_leave_out():
  # [frame, block, frame, block]
  pairs = radial_table(8, 256).reshape(8, 2, 8, 2).any(axis=(1, 3))
  assert np.flatnonzero(pairs[0]).tolist() == [0, 1, 2, 3, 4, 6]
  assert np.flatnonzero(~pairs[7]).tolist() == [2]


def test_text_sees_and_is_seen_by_all():
  table = masks.radial_blocks(8, 256, sink=False, text_tokens=256).table[0, 0]
  assert table.shape == (18, 18)
  assert table[16:].all()
  assert table[:, 16:].all()
  alone = masks.radial_blocks(8, 256, sink=False).table[0, 0]
  np.testing.assert_array_equal(table[:16, :16], alone)


def test_radial_blocks_attend_as_their_scores_do():
  """Section 8 (iii) and (iv): in the kernel, and joined with the text."""
  frames, tokens, text, side = 6, 64, 32, 16
  options = {"decay": 0.1, "block_size": side, "dense_width": 32}
  mask = masks.radial_blocks(frames, tokens, text_tokens=text, **options)
  video, n = frames * tokens, frames * tokens + text
  arrays = np.random.default_rng(0).standard_normal((3, 1, n, 2, 16))
  q, k, v = (jnp.asarray(x, jnp.float32) for x in 2 * arrays)
  attend = functools.partial(
    attention.dot_product_attention, implementation="gpu_interpret"
  )
  out = attend(q, k, v, mask=mask)
  seen = mask.table[0, 0].repeat(side, 0).repeat(side, 1)
  assert 0.4 < seen.mean() < 0.9
  score = np.einsum("bihd,bjhd->bhij", *2 * arrays[:2]) / 4
  weights = np.where(seen, np.exp(score - score.max(-1, keepdims=True)), 0)
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum("bhij,bjhd->bihd", weights, 2 * arrays[2])
  np.testing.assert_allclose(out, expected, atol=1e-5)
  everything = masks.blocks(np.ones(mask.table.shape, bool), side)
  np.testing.assert_allclose(
    attend(q, k, v, mask=everything), attend(q, k, v), atol=1e-5
  )
  # HunyuanVideo: the video's keys sparse, the text's all, and their sum.
  alone = masks.radial_blocks(frames, tokens, **options)
  parts = [
    attention.dot_product_attention(
      q[:, :video], k[:, keys], v[:, keys], mask=m, return_log_sum_exp=True
    )
    for keys, m in ((slice(video), alone), (slice(video, n), None))
  ]
  share = jax.nn.softmax(jnp.stack([x.log_sum_exp for x in parts]), axis=0)
  share = share.swapaxes(2, 3)[..., None]
  joined = share[0] * parts[0].out + share[1] * parts[1].out
  np.testing.assert_allclose(joined, out[:, :video], atol=1e-5)


@pytest.mark.parametrize("decay", [1.0, 0.3])
def test_radial_blocks_of_frames_that_cut_blocks(decay):
  """Frames that do not fill their blocks, by the rule of the fact sheet."""
  frames, tokens, side = 7, 200, 128
  got = masks.radial_blocks(frames, tokens, decay=decay).table[0, 0]
  size = frames * tokens // side
  # What the released code drops is visible.
  assert got.shape == (size + 1, size + 1)
  assert got[size].all()
  assert got[:, size].all()
  expected = np.zeros((size, size), bool)
  for i, j in itertools.product(range(frames), range(frames)):
    local = _frame_pair(i, j, tokens, decay)
    if local is None:
      continue
    top, left = (x * tokens % side for x in (i, j))
    length = math.ceil(tokens / side) * side
    canvas = np.zeros((top + length, left + length), bool)
    part = canvas[top : top + tokens, left : left + tokens]
    part[:] = local[: part.shape[0], : part.shape[1]]
    row, column = i * tokens // side, j * tokens // side
    for a, b in np.ndindex(canvas.shape[0] // side, canvas.shape[1] // side):
      block = canvas[a * side :, b * side :][:side, :side]
      share = block.mean(axis=0)
      share = share[share > 0]
      keep = share.size and np.mean(share > 1 / 3) > 0.6
      if keep and row + a < size and column + b < size:
        expected[row + a, column + b] = True
  np.testing.assert_array_equal(got[:size, :size], expected)
  masks.radial_blocks(frames, tokens).check(1, 1, 1400, 1400)


def test_radial_blocks_of_small_frames():
  """With a threshold of 128, 16 tokens a frame see but their neighbours."""
  small = {"block_size": 4, "sink": False}
  as_released = radial_table(8, 16, **small).reshape(8, 4, 8, 4)
  apart = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
  pairs = as_released.any(axis=(1, 3))
  np.testing.assert_array_equal(pairs, apart <= 1)
  # P is 32: half widths of 8 and 4 tokens, the 1/3 and 0.6 rule on top.
  scaled = radial_table(8, 16, dense_width=4, **small).reshape(8, 4, 8, 4)
  near, far = scaled[0, :, 2], scaled[0, :, 4]
  block = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
  np.testing.assert_array_equal(near, block <= 2)
  np.testing.assert_array_equal(far, block <= 1)
  assert scaled.any(axis=(1, 3)).all()


def _frame_pair(i, j, tokens, decay):
  """Section 3.2 of the fact sheet, from the distance of two frames."""
  if j == 0 or abs(i - j) <= 1:
    return np.ones((tokens, tokens), bool)
  d = abs(i - j)
  width = 2 ** len(f"{tokens:b}") / 2 ** len(f"{d:b}")
  if width < 128 and d % int(128 / width):
    return None
  k = np.arange(tokens)
  return np.abs(k[:, None] - k[None, :]) <= max(width * decay, 128)
