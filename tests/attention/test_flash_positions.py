"""Masks by positions that are arrays, through the flash kernels.

Against the formulas of attention and of its gradients in NumPy, float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks
from attention.kernels import flash_tpu
from tests.attention import kernel_runs

BATCH, Q_LEN, KV_LEN, HEADS, DIM = 2, 40, 300, 2, 16
INTERPRETED = pytest.mark.parametrize(
  "implementation", ["tpu_interpret", "gpu_interpret"]
)


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flash_tpu, "BLOCK", 128)
    yield


def _numbers():
  """Two prompts on the left of which is padding, before a ring of a cache."""
  lengths = np.array([23, Q_LEN])
  q = np.arange(Q_LEN)[None, :] - Q_LEN + lengths[:, None]
  q = np.where(q < 0, -1, q + 270)
  slots = np.arange(KV_LEN)[None, :]
  ring = slots + np.where(slots < 11, KV_LEN, 0)
  k = np.concatenate([ring, np.where(slots < 290, slots, -1)])
  k = np.where(k > np.array([310, 999])[:, None], -1, k)
  return {
    "q_positions": q,
    "kv_positions": k,
    "window": np.array([50, 260]),
    "offset": np.array([160, 200]),
  }


def _positions(x):
  return masks.positions(x["q_positions"], x["kv_positions"], x["window"])


def _seen_positions(x):
  q, k = x["q_positions"][:, :, None], x["kv_positions"][:, None, :]
  near = (q - x["window"][:, None, None] <= k) & (k <= q)
  return near & (q >= 0) & (k >= 0)


def _combined(x):
  window = masks.sliding_window(x["window"], 3, offset=x["offset"])
  return (window | ~masks.causal(x["offset"][0])) & masks.padding(x["window"])


def _seen_combined(x):
  window, offset = (x[name][:, None, None] for name in ("window", "offset"))
  i, k = np.arange(Q_LEN)[None, :, None], np.arange(KV_LEN)[None, None, :]
  near = (i + offset - window <= k) & (k <= i + offset + 3)
  return (near | (k > i + offset[0])) & (k < window)


MASKS = {
  "positions": (_positions, _seen_positions),
  "combined": (_combined, _seen_combined),
}


def _arrays(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  shapes = {
    "q": (BATCH, Q_LEN, HEADS, DIM),
    "k": (BATCH, KV_LEN, 1, DIM),
    "v": (BATCH, KV_LEN, 1, DIM),
    "out_bar": (BATCH, Q_LEN, HEADS, DIM),
  }
  return {
    name: jnp.asarray(rng.standard_normal(shape), dtype)
    for name, shape in shapes.items()
  }


def _formulas(arrays, seen):
  """Returns the output and the gradients, in float64."""
  q, k, v, out_bar = (
    np.asarray(arrays[name].astype(jnp.float32), np.float64)
    for name in ("q", "k", "v", "out_bar")
  )
  k, v = k[:, :, 0], v[:, :, 0]
  score = np.einsum("bihd,bjd->bhij", q, k) / np.sqrt(DIM)
  weights = np.where(seen[:, None], np.exp(score), 0)
  total = weights.sum(axis=-1, keepdims=True)
  weights /= np.where(total == 0, 1, total)
  d_weights = np.einsum("bihd,bjd->bhij", out_bar, v)
  mean = (weights * d_weights).sum(axis=-1, keepdims=True)
  d_score = weights * (d_weights - mean) / np.sqrt(DIM)
  return {
    "out": np.einsum("bhij,bjd->bihd", weights, v),
    "k": np.einsum("bhij,bihd->bjd", d_score, q)[:, :, None],
    "q": np.einsum("bhij,bjd->bihd", d_score, k),
    "v": np.einsum("bhij,bihd->bjd", weights, out_bar)[:, :, None],
  }


@functools.cache
def _runs(implementation, make):
  """A compiled function of arrays and of numbers, which are traced."""

  @jax.jit
  def run(arrays, numbers):
    def attend(arrays):
      return attention.dot_product_attention(
        **arrays, mask=make(numbers), implementation=implementation
      )

    out, pull = jax.vjp(attend, {name: arrays[name] for name in "qkv"})
    return {"out": out, **pull(arrays["out_bar"])[0]}

  return run


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(
  "implementation", ["xla", "tpu_interpret", "gpu_interpret"]
)
def test_values_and_gradients(implementation, name):
  make, see = MASKS[name]
  numbers, arrays = _numbers(), _arrays()
  seen = see(numbers)
  expected = _formulas(arrays, seen)
  # Nothing that is hidden from all reaches anything, whatever it is.
  idle_queries, idle_keys = ~seen.any(axis=2), ~seen.any(axis=1)
  assert idle_keys.any()
  arrays["q"] = jnp.where(idle_queries[..., None, None], np.nan, arrays["q"])
  for key in "kv":
    arrays[key] = jnp.where(idle_keys[..., None, None], np.nan, arrays[key])
  numbers = jax.tree.map(jnp.asarray, numbers)
  actual = _runs(implementation, make)(arrays, numbers)
  kernel_runs.assert_close(actual, expected, 3e-5)
  for key, idle in (("q", idle_queries), ("k", idle_keys), ("v", idle_keys)):
    assert not np.any(np.asarray(actual[key])[idle]), key


@INTERPRETED
def test_bfloat16(implementation):
  numbers, arrays = _numbers(), _arrays(jnp.bfloat16)
  expected = _formulas(arrays, _seen_positions(numbers))
  numbers = jax.tree.map(jnp.asarray, numbers)
  actual = _runs(implementation, _positions)(arrays, numbers)
  assert actual["out"].dtype == jnp.bfloat16
  kernel_runs.assert_close(actual, expected, 2e-2)
