"""Re-ttention: its identities, and its masks against formulas and counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, reshaped
from tests.attention import kernel_runs
from tests.attention.test_masks import check_states

LENGTH, HEADS, DIM = 96, 2, 16
KEEP = 0.125


def draw(seed, dtype=jnp.float32, length=LENGTH):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(2 * rng.normal(size=(2, length, HEADS, DIM)), dtype)
    for _ in range(3)
  )


WINDOWS = {
  "share": masks.share_window(LENGTH, KEEP),
  "frames": masks.frame_window(6, 15, 0.3, text=6),
  "frames without text": masks.frame_window(8, 12, 0.4),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_statistics_equal_sums_of_probabilities(window):
  q, k, v = draw(0)
  mask = WINDOWS[window]
  out, (ratio, residual) = reshaped.attention_with_statistics(q, k, v, mask)
  wide = [np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v)]
  scores = wide[0] @ wide[1].swapaxes(2, 3) / np.sqrt(DIM)
  full = np.exp(scores - scores.max(axis=-1, keepdims=True))
  full /= full.sum(axis=-1, keepdims=True)
  kept = np.asarray(mask.dense(LENGTH, LENGTH))
  np.testing.assert_allclose(
    ratio.swapaxes(1, 2)[..., 0], (full * kept).sum(axis=-1), rtol=1e-5
  )
  # The residual is just what the keys that are left out add.
  np.testing.assert_allclose(
    residual.swapaxes(1, 2), (full * ~kept) @ wide[2], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    out, attention.dot_product_attention(q, k, v), rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize("window", WINDOWS)
def test_a_sparse_step_on_the_same_arrays_is_full_attention(window):
  """Also the identity of the step that keeps the statistics."""
  q, k, v = draw(1)
  mask = WINDOWS[window]
  out, statistics = reshaped.attention_with_statistics(q, k, v, mask)
  again = reshaped.reshaped_attention(q, k, v, mask, statistics)
  np.testing.assert_allclose(again, out, rtol=1e-6, atol=1e-6)
  # Without its statistics the window is far from it.
  alone = attention.dot_product_attention(q, k, v, mask=mask)
  assert jnp.abs(alone - out).max() > 0.1


def test_large_scores_need_the_maximum_of_all_keys():
  q, k, v = draw(2)
  q = q * 30
  mask = WINDOWS["share"]
  out, statistics = reshaped.attention_with_statistics(q, k, v, mask)
  assert jnp.isfinite(statistics.residual).all()
  assert (statistics.ratio <= 1 + 1e-5).all()
  assert statistics.ratio.min() < 1e-3
  again = reshaped.reshaped_attention(q, k, v, mask, statistics)
  np.testing.assert_allclose(again, out, rtol=1e-5, atol=1e-5)


def test_a_share_of_one_is_full_attention_at_each_step():
  mask = masks.share_window(LENGTH, 1.0)
  assert mask.dense(LENGTH, LENGTH).all()
  assert masks.frame_window(6, 15, 1.0, text=6).dense(96, 96).all()
  _, statistics = reshaped.attention_with_statistics(*draw(3), mask)
  np.testing.assert_allclose(statistics.ratio, 1, rtol=1e-6)
  np.testing.assert_allclose(statistics.residual, 0, atol=1e-6)
  # Of other arrays than those of the full step.
  for seed in (4, 5):
    q, k, v = draw(seed)
    out = reshaped.reshaped_attention(q, k, v, mask, statistics)
    expected = attention.dot_product_attention(q, k, v)
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=2e-6)


def test_ramp():
  start = reshaped.Statistics(jnp.array([0.3, 0.95]), jnp.zeros(2))
  steps = [start]
  for _ in range(3):
    steps.append(reshaped.ramped(steps[-1], 0.04))
  np.testing.assert_allclose(steps[3].ratio, [0.42, 1.07], rtol=1e-6)
  clamped = reshaped.ramped(steps[2], 0.04, most=1.0)
  np.testing.assert_allclose(clamped.ratio, [0.42, 1.0], rtol=1e-6)
  assert clamped.residual is start.residual


def test_counts_of_the_paper():
  """4096 tokens, 3.125 percent: 129 keys of a row, 65 of the first."""
  row = np.asarray(masks.share_window(4096, 0.03125).count(4096, 4096))
  assert row[0, 0, 0] == row[0, 0, -1] == 65
  assert (row[0, 0, 64:-64] == 129).all()
  # CogVideoX: 226 + 13 * 43 of 17 776 keys.
  mask = masks.frame_window(13, 1350, 0.03125, text=226)
  window, _ = mask.a, mask.b
  first, last, place = (np.asarray(x) for x in window.bounds)
  for query, count in ((700, 43), (1350 * 5 + 600, 43), (0, 22), (1349, 22)):
    seen = (first[query] <= place) & (place <= last[query])
    assert seen[:-226].sum() == 13 * count
  some = mask.tile_states(17_776, 17_776, 1, 17_776)
  assert (some[0, 0, :-226] == masks.MIXED).all()
  assert (some[0, 0, -226:] == masks.FULL).all()


@pytest.mark.parametrize(
  ("frames", "tokens", "keep", "text"),
  [(3, 7, 0.6, 4), (2, 9, 0.3, 0), (1, 5, 0.5, 9), (4, 4, 0.1, 3)],
)
def test_frame_windows_equal_their_formula(frames, tokens, keep, text):
  places = frames * tokens
  length = places + text
  half = int(tokens * keep) // 2
  visible = np.ones((length, length), bool)
  for i in range(places):
    for j in range(places):
      p = i % tokens
      visible[i, j] = max(0, p - half) <= j % tokens < min(tokens, p + half + 1)
  mask = masks.frame_window(frames, tokens, keep, text=text)
  np.testing.assert_array_equal(mask.dense(length, length)[0, 0], visible)
  for block_q, block_k in ((1, 1), (4, 8), (7, 5), (99, 3)):
    exact = block_q == block_k == 1
    check_states(mask, visible[None, None], block_q, block_k, exact)


def test_kernel_and_gradients():
  q, k, v = draw(6)
  out_bar = draw(7)[0]
  mask = WINDOWS["frames"]

  def run(implementation):
    def function(q, k, v):
      # Statistics of other arrays, so that the sparse step matters.
      _, statistics = reshaped.attention_with_statistics(
        q, v, k, mask, implementation=implementation
      )
      return reshaped.reshaped_attention(
        q, k, v, mask, statistics, implementation=implementation
      )

    arrays = {"q": q, "k": k, "v": v}
    return kernel_runs.with_gradients(function)(arrays, out_bar)

  kernel_runs.assert_close(run("gpu_interpret"), run("xla"), 1e-5)


def test_bfloat16_keeps_statistics_in_float32():
  q, k, v = draw(8, jnp.bfloat16)
  mask = WINDOWS["share"]
  run = jax.jit(
    functools.partial(reshaped.attention_with_statistics, mask=mask)
  )
  out, statistics = run(q, k, v)
  assert out.dtype == jnp.bfloat16
  assert {x.dtype for x in statistics} == {jnp.dtype("float32")}
  again = reshaped.reshaped_attention(q, k, v, mask, statistics)
  assert again.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    *(x.astype(jnp.float32) for x in (again, out)), atol=0.02
  )


def test_errors():
  for keep in (0.0, 1.5):
    with pytest.raises(ValueError, match=f"keep is {keep}; it"):
      masks.share_window(8, keep)
    with pytest.raises(ValueError, match=f"keep is {keep}; it"):
      masks.frame_window(2, 8, keep)
  with pytest.raises(ValueError, match="text is -1"):
    masks.frame_window(2, 8, 0.5, text=-1)
  statistics = reshaped.Statistics(jnp.ones(2), jnp.zeros(2))
  with pytest.raises(ValueError, match="step is nan; it must be a number"):
    reshaped.ramped(statistics, np.nan)
  with pytest.raises(ValueError, match="most is inf; it must be a number"):
    reshaped.ramped(statistics, 0.04, np.inf)
