"""The GPU kernels of flash attention against the float32 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, normalizers, scores
from attention.kernels import flash, flash_gpu

# Sizes that no tile divides, heads of queries that share those of keys and of
# values, and channels that take two pieces.
BATCH, Q_LEN, KV_LEN, HEADS, K_HEADS, V_HEADS = 2, 45, 37, 6, 3, 2
DIM, V_DIM = 40, 16
TOLERANCE = {jnp.float32: 5e-6, jnp.bfloat16: 2e-2}

_rng = np.random.default_rng(0)


def _draw(*shape, dtype=jnp.float32):
  return jnp.asarray(_rng.standard_normal(shape), dtype)


def _segments(length):
  return jnp.asarray(np.sort(_rng.integers(0, 3, (BATCH, length))), jnp.int32)


def _plain_function(score, batch, head, q_index, k_index, a, b, c):
  near = jnp.abs(k_index - q_index) < 9
  return score * jnp.tanh(a) + jnp.where(near, b * c, 0.1 * head + batch)


# Modifications, mask and normalizer; together they have operands along all
# axes and take every branch of the kernels.
CASES = {
  # Whole tiles, which need no list.
  "plain": ([], None, None),
  "causal, dense bias of heads": (
    [scores.bias(_draw(1, HEADS, Q_LEN, KV_LEN))],
    masks.causal(3),
    None,
  ),
  "dense bias of the batch, soft cap": (
    [scores.bias(_draw(BATCH, 1, Q_LEN, KV_LEN)), scores.soft_cap(3.0)],
    masks.padding(jnp.array([0, 30])),
    None,
  ),
  "sliding, ALiBi": (
    [scores.alibi(scores.alibi_slopes(HEADS))],
    masks.sliding_window(9, 2),
    None,
  ),
  "function, segments, sink": (
    [
      scores.function(
        _plain_function,
        {"hq": _draw(HEADS, Q_LEN), "bk": _draw(BATCH, KV_LEN), "": _draw()},
      )
    ],
    masks.segments(_segments(Q_LEN), _segments(KV_LEN)),
    normalizers.softmax_with_sink(_draw(HEADS)),
  ),
  "factored bias, block list": (
    [scores.factored_bias(_draw(Q_LEN, HEADS, 3), _draw(KV_LEN, HEADS, 3))],
    masks.blocks(_rng.integers(0, 2, (HEADS, 3, 3)).astype(bool), 16),
    None,
  ),
  "sigmoid, dense mask": (
    [],
    masks.dense(jnp.asarray(_rng.integers(0, 2, (Q_LEN, KV_LEN)), bool)),
    normalizers.sigmoid(),
  ),
  "affine, causal": (
    [],
    masks.causal() | masks.prefix(5),
    normalizers.affine(_draw(BATCH, Q_LEN, HEADS), _draw(HEADS)),
  ),
}

# The case for bfloat16.
NARROW = "causal, dense bias of heads"


def _arrays(dtype, case):
  kv_len = 32 if case == "plain" else KV_LEN
  return {
    "q": _draw(BATCH, Q_LEN, HEADS, DIM, dtype=dtype),
    "k": _draw(BATCH, kv_len, K_HEADS, DIM, dtype=dtype),
    "v": _draw(BATCH, kv_len, V_HEADS, V_DIM, dtype=dtype),
  }


def _with_gradients(case, implementation):
  mods, mask, normalizer = CASES[case]

  # Kernels are compiled more than they are run.
  @functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  def run(arrays, mods, normalizer, out_bar):
    def attend(arrays, mods, normalizer):
      return attention.dot_product_attention(
        **arrays,
        score_mods=mods,
        mask=mask,
        normalizer=normalizer,
        scale=0.2,
        implementation=implementation,
      )

    out, pull = jax.vjp(attend, arrays, mods, normalizer)
    arrays_bar, mods_bar, normalizer_bar = pull(out_bar.astype(out.dtype))
    return {"out": out, **arrays_bar, "m": mods_bar, "n": normalizer_bar}

  return lambda arrays, out_bar: run(arrays, mods, normalizer, out_bar)


def _assert_close(actual, expected, tolerance):
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(actual),
    jax.tree.leaves(expected),
    strict=True,
  )
  for (path, have), want in pairs:
    assert have.shape == want.shape, path
    if have.dtype == jax.dtypes.float0:
      continue
    have, want = (np.asarray(x, np.float32) for x in (have, want))
    error = np.linalg.norm(have - want) / np.linalg.norm(want)
    assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error}"


@pytest.mark.parametrize("case", [case for case in CASES if case != NARROW])
def test_equals_the_reference_with_all_gradients(case):
  arrays = _arrays(jnp.float32, case)
  out_bar = _draw(BATCH, Q_LEN, HEADS, V_DIM)
  actual = _with_gradients(case, "gpu_interpret")(arrays, out_bar)
  expected = _with_gradients(case, "xla")(arrays, out_bar)
  _assert_close(actual, expected, TOLERANCE[jnp.float32])


def test_bfloat16_and_the_same_bits_twice():
  case = NARROW
  arrays = _arrays(jnp.bfloat16, case)
  out_bar = _draw(BATCH, Q_LEN, HEADS, V_DIM)
  run = _with_gradients(case, "gpu_interpret")
  actual = run(arrays, out_bar)
  assert actual["out"].dtype == actual["q"].dtype == jnp.bfloat16
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
  expected = _with_gradients(case, "xla")(wide, out_bar)
  _assert_close(actual, expected, TOLERANCE[jnp.bfloat16])
  for first, again in zip(
    jax.tree.leaves(actual), jax.tree.leaves(run(arrays, out_bar)), strict=True
  ):
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
  ("dim", "v_dim", "mask", "reason"),
  [
    (300, 16, None, "q has heads of dimension 300"),
    (64, 160, None, "v of 160"),
    (16, 16, masks.blocks(np.ones((4, 4), bool), 8), "tiles of 8 x 8"),
    (256, 256, masks.causal(), None),
  ],
)
def test_says_what_it_cannot_take(dim, v_dim, mask, reason):
  q = jnp.zeros((1, 32, 1, dim), jnp.bfloat16)
  v = jnp.zeros((1, 32, 1, v_dim), jnp.bfloat16)
  said = flash.unsupported("gpu", q, q, v, [], mask)
  assert said is None if reason is None else reason in said


def test_tiles_are_powers_of_two_that_the_mask_allows():
  q = jnp.zeros((1, 1000, 1, 64), jnp.bfloat16)
  k = jnp.zeros((1, 33, 1, 64), jnp.bfloat16)
  assert flash_gpu.block_sizes(q, k, None) == (128, 64)
  table = np.ones((21, 1), bool)
  assert flash_gpu.block_sizes(q, k, masks.blocks(table, 48)) == (16, 16)
