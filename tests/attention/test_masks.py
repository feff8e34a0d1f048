"""Masks against formulas in NumPy, and what they say of tiles."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import mask_base, masks
from tests.attention.mask_states import check_states, dense, positions

EMPTY, MIXED, FULL = masks.EMPTY, masks.MIXED, masks.FULL
# Tiles that fit, that do not, and that are larger than the scores.
Q_LEN, KV_LEN = 7, 10
BLOCKS = [(3, 4), (7, 5), (8, 16)]


@pytest.mark.parametrize("make", [masks.padding, masks.prefix])
def test_first_keys(make):
  lengths = np.array([0, 3, 4, 99])
  visible = np.arange(KV_LEN) < lengths[:, None, None, None]
  visible = np.broadcast_to(visible, (4, 1, Q_LEN, KV_LEN))
  mask = make(jnp.asarray(lengths))
  np.testing.assert_array_equal(dense(mask, Q_LEN, KV_LEN, 4), visible)
  for blocks in BLOCKS:
    check_states(mask, visible, *blocks, exact=True)


def test_the_number_of_keys_that_a_query_sees():
  lengths, segments = jnp.array([2, 5]), jnp.array([[0, 0, 1, 1, 1, 2]] * 2)
  of_heads = lambda batch, head, i, j: (i + j) % (head + 2) > 0
  for mask in (
    masks.causal(-1),
    masks.causal() & masks.segments(segments),
    masks.padding(lengths) & masks.function(of_heads),
  ):
    count = mask.count(6, 6, batch=2, heads=3)
    assert count.dtype == jnp.float32
    expected = np.asarray(mask.dense(6, 6, batch=2, heads=3)).sum(-1)
    np.testing.assert_array_equal(count, expected)


def test_prefix_of_one_length_for_all():
  visible = np.tile(np.arange(7) < 3, (2, 1, 5, 1))
  np.testing.assert_array_equal(masks.prefix(3).dense(5, 7, batch=2), visible)
  check_states(masks.prefix(3), visible, 2, 3, exact=True)


def test_prefix_language_model():
  i, j = positions(6, 6)
  mask = masks.causal() | masks.prefix(3)
  np.testing.assert_array_equal(mask.dense(6, 6)[0, 0], (j <= i) | (j < 3))


def test_segments():
  rng = np.random.default_rng(0)
  rows, columns = (rng.integers(0, 3, (9, n)) for n in (Q_LEN, KV_LEN))
  visible = (rows[:, :, None] == columns[:, None, :])[:, None]
  mask = masks.segments(jnp.asarray(rows), jnp.asarray(columns))
  np.testing.assert_array_equal(dense(mask, Q_LEN, KV_LEN, 9), visible)
  for blocks in BLOCKS:
    check_states(mask, visible, *blocks, exact=False)


def test_segments_states_are_exact_where_tiles_have_one_segment():
  rows = np.array([[0, 0, 1, 1, 4, 4, 4], [2, 2, 2, 2, 0, 0, 1]])
  columns = np.array([[1, 1, 1, 4, 4, 4, 0, 0], [0, 0, 0, 2, 2, 2, 2, 2]])
  visible = (rows[:, :, None] == columns[:, None, :])[:, None]
  mask = masks.segments(jnp.asarray(rows), jnp.asarray(columns))
  states = check_states(mask, visible, 2, 3, exact=True)
  assert {EMPTY, FULL} == set(states.ravel())


def test_segments_of_queries_serve_for_keys():
  rows = jnp.array([[0, 1, 1, 2]])
  same = masks.segments(rows).dense(4, 4)[0, 0]
  np.testing.assert_array_equal(same, rows[0][:, None] == rows[0][None, :])


SHAPES = ["qk", "hqk", "bhqk", "b1qk", "1h1k", "bhq1", "k", "q1"]


@pytest.mark.parametrize("axes", SHAPES)
def test_dense(axes):
  rng = np.random.default_rng(len(axes))
  sizes = {"b": 2, "h": 3, "q": Q_LEN, "k": KV_LEN, "1": 1}
  array = rng.random([sizes[axis] for axis in axes]) < 0.8
  visible = np.broadcast_to(array, (2, 3, Q_LEN, KV_LEN))
  mask = masks.dense(jnp.asarray(array))
  got = dense(mask, Q_LEN, KV_LEN, 2, 3)
  np.testing.assert_array_equal(got, visible)
  for blocks in BLOCKS if axes == "bhqk" else [(3, 2)]:
    check_states(mask, visible, *blocks, exact=True)


@pytest.mark.parametrize("lead", [(), (3,), (2, 1), (2, 3)])
def test_blocks(lead):
  rng = np.random.default_rng(1)
  table = rng.random((*lead, 2, 2)) < 0.5
  mask = masks.blocks(table, 4, 6)
  visible = np.kron(table, np.ones((4, 6), bool))[..., :Q_LEN, :KV_LEN]
  visible = np.broadcast_to(visible, (2, 3, Q_LEN, KV_LEN))
  got = dense(mask, Q_LEN, KV_LEN, 2, 3)
  np.testing.assert_array_equal(got, visible)
  for blocks in ((4, 6), (2, 3), (4, 2), (1, 1)):
    check_states(mask, visible, *blocks, exact=True)
  assert mask.tile_multiples() == (4, 6)
  assert mask.in_mixed_tile() is None


def test_function_sees_batch_head_and_positions():
  mask = masks.function(lambda b, h, i, j: (i + 2 * j + 3 * h + 5 * b) % 7 < 4)
  b, h, i, j = np.ix_(range(2), range(3), range(5), range(6))
  visible = (i + 2 * j + 3 * h + 5 * b) % 7 < 4
  np.testing.assert_array_equal(mask.dense(5, 6, batch=2, heads=3), visible)
  check_states(mask, visible, 2, 2, exact=False)


LENGTH, BATCH, HEADS = 12, 2, 2
small = st.integers(-3, 8)
seeds = st.integers(0, 99)
# What to build: the kind of a mask, and its numbers or its parts.
leaves = st.one_of(
  st.tuples(st.just("band"), small, st.integers(0, 5)),
  st.tuples(st.just("lengths"), small, small),
  st.tuples(st.just("segments"), seeds),
  st.tuples(st.just("blocks"), seeds),
  st.tuples(st.just("grid"), st.integers(0, 1)),
)
compositions = st.recursive(
  leaves,
  lambda part: st.one_of(
    st.tuples(st.sampled_from("&|"), part, part), st.tuples(st.just("~"), part)
  ),
  max_leaves=4,
)


def build(kind, *rest):
  """Returns a mask and its booleans."""
  i, j = positions(LENGTH, LENGTH)
  match kind:
    case "&" | "|":
      (a, left), (b, right) = build(*rest[0]), build(*rest[1])
      return (a & b, left & right) if kind == "&" else (a | b, left | right)
    case "~":
      mask, visible = build(*rest[0])
      return ~mask, ~visible
    case "band":
      offset, before = rest
      mask = masks.sliding_window(before, 1, offset=offset)
      visible = (j - i >= offset - before) & (j - i <= offset + 1)
    case "lengths":
      mask = masks.padding(jnp.array(rest))
      visible = j < np.array(rest)[:, None, None, None]
    case "segments":
      x = np.random.default_rng(rest[0]).integers(0, 2, (BATCH, LENGTH))
      mask = masks.segments(jnp.asarray(x))
      visible = (x[:, :, None] == x[:, None, :])[:, None]
    case "blocks":
      table = np.random.default_rng(rest[0]).random((HEADS, 3, 3)) < 0.5
      mask = masks.blocks(table, 4)
      visible = np.kron(table, np.ones((4, 4), bool))
    case "grid":
      mask = masks.inward_window((3, 4), (None, rest[0]))
      # FreeSwim (arXiv 2511.14712), along an axis of length 4.
      i, j, r = i % 4, j % 4, rest[0]
      first = i - r - np.maximum(0, i + r - 4 + 1)
      visible = (first <= j) & (j <= i + r + np.maximum(0, r - i))
  return mask, np.broadcast_to(visible, (BATCH, HEADS, LENGTH, LENGTH))


@settings(max_examples=16)
@given(compositions, st.sampled_from([(4, 4), (2, 4), (1, 2)]))
def test_compositions(what, blocks):
  mask, visible = build(*what)
  got = dense(mask, LENGTH, LENGTH, BATCH, HEADS)
  np.testing.assert_array_equal(got, visible)
  states = check_states(mask, visible, *blocks, exact=False)
  try:
    mixed = mask.in_mixed_tile()
  except NotImplementedError:
    assert any(mask.tile_multiples())
    return
  inside = np.ones_like(visible)
  if mixed is not None:
    # Kernels evaluate it on tiles of any size.
    assert not any(mixed.tile_multiples())
    inside = np.asarray(dense(mixed, LENGTH, LENGTH, BATCH, HEADS))
  of_mixed = states == MIXED
  of_mixed = of_mixed.repeat(blocks[0], axis=2).repeat(blocks[1], axis=3)
  np.testing.assert_array_equal(inside[of_mixed], visible[of_mixed])


def test_idle_queries_and_keys_are_known():
  """Those that meet nobody, exactly for each kind of mask."""
  q_len, kv_len = 5, 9
  q_segments = jnp.array([[3, 1, 1, 3, 7], [2, 2, 2, 2, 2]])
  kv_segments = jnp.array([[2, 1, 3, 9, 0, 7, 1, 1, 2], [1, 2, 3] * 3])
  array = np.random.default_rng(0).random((2, 1, q_len, kv_len)) < 0.2
  table = np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
  kinds = {
    "causal": masks.causal(-1),
    "window": masks.sliding_window(2, offset=3),
    "window of each row": masks.sliding_window(
      jnp.array([0, 2]), offset=jnp.array([6, -3])
    ),
    # A ring buffer that has gone round, and an empty cache with one token.
    "positions": masks.positions(
      jnp.array([[7, 20, 9, -1, 12], [0, 1, 2, 3, -1]]),
      jnp.array([[8, 3, 14, -1, 7, 6, 21, -1, 5], [-1] * 4 + [1] + [-1] * 4]),
      1,
      jnp.array([1, 0]),
    ),
    "padding": masks.padding(jnp.array([0, 4])),
    "prefix": masks.prefix(3),
    "segments": masks.segments(q_segments, kv_segments),
    "dense": masks.dense(jnp.asarray(array)),
    "blocks": masks.blocks(table, 2, 4),
    "both": masks.causal() & masks.padding(jnp.array([2, 9])),
    "either": masks.causal(-2) | masks.prefix(2),
    "not": ~masks.causal(1),
  }

  @jax.jit
  def run():
    return {
      name: (mask.idle(q_len, kv_len), mask.dense(q_len, kv_len, batch=2))
      for name, mask in kinds.items()
    }

  for name, (idle, visible) in run().items():
    for got, axis in zip(idle, (3, 2), strict=True):
      expected = ~np.asarray(visible).any(axis=axis)
      got = np.broadcast_to(got, expected.shape)
      np.testing.assert_array_equal(got, expected, err_msg=f"{name} {axis}")
  # Known before the program runs, so that a mask that hides nothing is free.
  assert isinstance(masks.causal().idle(4, 4)[1], np.ndarray)


def test_parts_take_their_own_arrays():
  """Each part of a composition finds its arrays among those of all parts."""
  rng = np.random.default_rng(0)
  a, b, c = (rng.random((4, 5)) < 0.5 for _ in range(3))
  x, y, z = (masks.dense(jnp.asarray(array)) for array in (a, b, c))
  for mask, visible in (
    ((x & ~y) | z, (a & ~b) | c),
    (x & (~y | z), a & (~b | c)),
    (~(x | y) & (z | x), ~(a | b) & (c | a)),
  ):
    np.testing.assert_array_equal(mask.dense(4, 5)[0, 0], visible)


def test_block_lists_leave_mixed_tiles_to_the_other_masks():
  table = np.array([[True, False], [True, True]])
  blocks, causal = masks.blocks(table, 4), masks.causal()
  window = masks.sliding_window(3)
  assert (blocks & causal).in_mixed_tile() == causal
  assert (blocks & causal & blocks & window).in_mixed_tile() == causal & window
  assert (blocks & blocks).in_mixed_tile() is None
  assert (~(blocks & causal)).in_mixed_tile() == ~causal
  for mask in ((blocks & causal) | window, causal & ~blocks):
    with pytest.raises(NotImplementedError, match="deeper"):
      mask.in_mixed_tile()


def test_tile_multiples_of_two_block_lists():
  a = masks.blocks(np.ones((2, 3), bool), 12, 8)
  b = masks.blocks(np.ones((3, 2), bool), 8, 12)
  assert (a & masks.causal() & b).tile_multiples() == (4, 4)


def test_masks_are_pytrees():
  """All of them can be arguments of a compiled function."""
  mask = masks.causal() & masks.padding(jnp.array([2, 5])) | ~masks.segments(
    jnp.array([[0, 0, 1, 1, 2, 2]] * 2)
  )
  mask &= masks.inward_window((2, 3), (None, 1))
  mask |= masks.blocks(np.eye(2, dtype=bool), 3)
  np.testing.assert_array_equal(dense(mask, 6, 6, 2), mask.dense(6, 6, batch=2))


def test_errors_name_argument_and_value():
  with pytest.raises(ValueError, match=r"array has shape \(1, 1, 1, 1, 2\)"):
    masks.dense(jnp.ones((1, 1, 1, 1, 2), bool))
  with pytest.raises(ValueError, match=r"shape \(2,\) and blocks 4 x 4"):
    masks.blocks(np.ones(2, bool), 4)
  with pytest.raises(ValueError, match=r"blocks 0 x 0"):
    masks.blocks(np.ones((2, 2), bool), 0)


@pytest.mark.parametrize(
  ("make", "error"),
  [
    (
      lambda: masks.padding(jnp.array([1, 2, 3])),
      r"FirstKeys, has shape \(3,\); with axes 'b' it must be \[2\]",
    ),
    (
      lambda: masks.causal() & masks.segments(jnp.zeros((2, 7), jnp.int32)),
      r"Segments, has shape \(2, 7\); .* \[2, 8\]",
    ),
    (lambda: ~masks.dense(jnp.ones((3, 8), bool)), r"Dense, .* \[8, 8\]"),
    (
      lambda: masks.causal() | masks.blocks(np.ones((3, 2), bool), 4),
      r"table .*\(1, 1, 3, 2\); 8 x 8 scores in blocks of 4 x 4 .*2, 2\)",
    ),
    (
      lambda: masks.blocks(np.ones((3, 1, 2, 2), bool), 4),
      r"table .*\(3, 1, 2, 2\); .* need \(2, 1, 2, 2\)",
    ),
    (lambda: masks.inward_window((3, 3), (1, 0)), r"GridWindow, .* \[8\]"),
  ],
)
def test_masks_that_do_not_fit_the_scores(make, error):
  with pytest.raises(ValueError, match=error):
    make().dense(8, 8, batch=2)


def test_block_list_that_does_not_fit_has_no_states():
  mask = masks.blocks(np.ones((2, 2), bool), 4)
  with pytest.raises(ValueError, match="9 x 8 scores in blocks of 4 x 4"):
    mask.tile_states(9, 8, 4, 4)


def test_states_of_single_rows_and_columns_take_little_memory():
  """As sums of the table for each query they took 16 GB at 75k tokens."""
  table = np.random.default_rng(0).random((60, 900)) > 0.9
  table[3], table[:, 7] = False, False
  mask = masks.blocks(table, 128, 16)
  sizes = {"rows": (1, 900 * 16), "columns": (60 * 128, 1)}
  for axis, (block_q, block_k) in sizes.items():
    tracemalloc.start()
    states = mask.tile_states(60 * 128, 900 * 16, block_q, block_k)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    some, every = (
      reduce(table, axis=int(axis == "rows")) for reduce in (np.any, np.all)
    )
    expected = np.where(every, FULL, np.where(some, MIXED, EMPTY))
    times = 128 if axis == "rows" else 16
    np.testing.assert_array_equal(states.ravel(), expected.repeat(times))
    # The sums of a table are integers of eight bytes, some of them at a time.
    assert most < 8 * 8 * table.size


@pytest.mark.parametrize(("intervals", "numbers"), [(40, 33), (33, 3), (1, 50)])
def test_intervals_that_hold_no_number(intervals, numbers):
  """Few of one kind are compared one by one, many are sorted."""
  rng = np.random.default_rng(intervals)
  first = rng.integers(0, 60, (3, intervals))
  last = first + rng.integers(-1, 3, first.shape)
  among = rng.integers(0, 60, (3, numbers))
  within = (first[:, :, None] <= among[:, None]) & (
    among[:, None] <= last[:, :, None]
  )
  got = mask_base.none_between(*map(jnp.asarray, (first, last, among)))
  np.testing.assert_array_equal(got, ~within.any(axis=2))
  alone = mask_base.none_between(
    jnp.asarray(first[:1]), jnp.asarray(last[:1]), jnp.asarray(among)
  )
  assert alone.shape == (3, intervals)
