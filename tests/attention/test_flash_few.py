"""Few queries against many keys, through the flash kernels, interpreted."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import attention
from attention import masks, normalizers, scores
from attention.kernels import flash_gpu, flash_tpu
from tests.attention import kernel_runs

INTERPRETED = pytest.mark.parametrize(
  "implementation", ["tpu_interpret", "gpu_interpret"]
)
DIM = 16


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
  """Several tiles, and several parts of the keys, at small sizes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flash_tpu, "FEW_COLUMNS", 512)
    patch.setattr(flash_gpu, "PART_TILES", 2)
    yield


def _ring(q_len, kv_len):
  """Caches: a ring that has gone round, one half full, one without a token."""
  slots = np.arange(kv_len)
  k = np.stack(
    [
      slots + np.where(slots < 77, kv_len, 0),
      np.where(slots < 400, slots - 30, -1),
      np.full(kv_len, -1),
    ]
  )
  last = np.array([kv_len + 76, 369, -1])
  q = np.maximum(last[:, None] - np.arange(q_len)[::-1], -1)
  return masks.positions(
    jnp.asarray(q), jnp.asarray(k), jnp.array([900, 10**6, 5])
  )


def _shifted(score, batch, head, i, j, slope, row, column):
  place = (i - j + 3 * head + batch).astype(jnp.float32)
  return score + slope * jnp.cos(place) + row * column


def _shift(x):
  arrays = {"h": x.slopes, "bq": x.rows, "bk": x.columns}
  return scores.function(_shifted, arrays)


def _of_heads(batch, head, i, j):
  """Hides some keys from both heads that share them, others from one."""
  return ((head // 2 + j + batch) % 5 != 0) & ((head + i + j) % 7 != 0)


# Where values have not as many heads as keys.
VALUE_HEADS = {"fewer heads of keys": 4, "fewer heads of values": 1}
# [batch, q_len, heads, k_heads, kv_len] and the slots.
CASES = {
  "a token and a ring": (
    (3, 1, 4, 1, 1001),
    lambda x: {"mask": _ring(1, 1001)},
  ),
  "modifications, heads": (
    (2, 3, 6, 3, 700),
    lambda x: {
      "mask": masks.causal(jnp.array([250, 690])) & masks.function(_of_heads),
      "score_mods": [_shift(x), scores.alibi(0.01 * x.slopes)],
    },
  ),
  "all keys, a sink": (
    (1, 2, 4, 4, 1024),
    lambda x: {"normalizer": normalizers.softmax_with_sink(x.slopes)},
  ),
  "fewer heads of keys": (
    (2, 2, 8, 2, 515),
    lambda x: {
      "mask": masks.padding(jnp.array([515, 99])),
      "score_mods": scores.alibi(0.01 * x.slopes),
    },
  ),
  "fewer heads of values": (
    (1, 1, 8, 4, 2000),
    lambda x: {"mask": masks.causal(1000)},
  ),
  "sigmoid": (
    (2, 1, 8, 2, 515),
    lambda x: {
      "mask": masks.padding(jnp.array([515, 99])),
      "normalizer": normalizers.sigmoid(),
    },
  ),
}


def _draw(name, dtype=jnp.float32):
  (batch, q_len, heads, k_heads, kv_len), slots = CASES[name]
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  arrays = {
    "q": normal(batch, q_len, heads, DIM).astype(dtype),
    "k": normal(batch, kv_len, k_heads, DIM).astype(dtype),
    "v": normal(batch, kv_len, VALUE_HEADS.get(name, k_heads), 24).astype(
      dtype
    ),
  }
  more = SimpleNamespace(
    slopes=normal(heads),
    rows=normal(batch, q_len),
    columns=normal(batch, kv_len),
  )
  return arrays, slots(more)


def _attend(slots, implementation, **options):
  return lambda arrays: attention.dot_product_attention(
    **arrays, **slots, implementation=implementation, **options
  )


def _with_nan(arrays, mask):
  """Puts NaN for all queries and keys that meet nobody."""
  q_len, kv_len = arrays["q"].shape[1], arrays["k"].shape[1]
  batch, _, heads, _ = arrays["q"].shape
  seen = np.asarray(mask.dense(q_len, kv_len, batch=batch, heads=heads))

  def idle(x):
    """Whether a head of keys or values is seen by none of its queries."""
    groups = seen.reshape(batch, x.shape[2], -1, kv_len).any(axis=2)
    return ~groups.swapaxes(1, 2)[..., None]

  empty = ~seen.any(axis=3).swapaxes(1, 2)[..., None]
  return {
    "q": jnp.where(empty, jnp.nan, arrays["q"]),
    **{x: jnp.where(idle(arrays[x]), jnp.nan, arrays[x]) for x in ("k", "v")},
  }, idle(arrays["k"]).any()


@pytest.mark.parametrize("name", CASES)
@INTERPRETED
def test_equals_the_reference(implementation, name):
  arrays, slots = _draw(name)
  options = {"return_log_sum_exp": name != "sigmoid"}
  expected = jax.jit(_attend(slots, "xla", **options))(arrays)
  if "mask" in slots:
    arrays, some = _with_nan(arrays, slots["mask"])
    assert some
  actual = jax.jit(_attend(slots, implementation, **options))(arrays)
  for have, want in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5)


@INTERPRETED
def test_bfloat16(implementation):
  arrays, slots = _draw("a token and a ring", jnp.bfloat16)
  actual = jax.jit(_attend(slots, implementation))(arrays)
  assert actual.dtype == jnp.bfloat16
  expected = _attend(slots, "xla")(kernel_runs.in_float32(arrays))
  kernel_runs.assert_close(actual, expected, 5e-3)


@INTERPRETED
def test_gradients_are_those_of_the_ordinary_kernels(implementation):
  arrays, slots = _draw("modifications, heads")

  def run(implementation, arrays, slopes):
    def attend(**arrays):
      more = scores.alibi(arrays.pop("slopes"))
      return _attend(
        slots | {"score_mods": [*slots["score_mods"], more]}, implementation
      )(arrays)

    out_bar = jnp.cos(jnp.arange(2 * 3 * 6 * 24.0)).reshape(2, 3, 6, 24)
    return kernel_runs.with_gradients(attend)(
      {**arrays, "slopes": slopes}, out_bar
    )

  expected = run("xla", arrays, jnp.full(6, 0.01))
  kernel_runs.assert_close(
    run(implementation, arrays, jnp.full(6, 0.01)), expected, 3e-5
  )


@INTERPRETED
def test_a_mesh_of_devices_splits_batch_and_heads(implementation):
  arrays, slots = _draw("sigmoid")
  slots = slots | {"mask": slots["mask"] & masks.function(_of_heads)}
  mesh = jax.make_mesh(
    (2, 1, 2),
    ("data", "fsdp", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  expected = _attend(slots, "xla")(arrays)
  with jax.set_mesh(mesh):
    actual = jax.jit(_attend(slots, implementation))(arrays)
  kernel_runs.assert_close(actual, expected, 3e-5)


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(equation.params))
    if equation.primitive.name == "pallas_call" or not inner:
      yield equation
      continue
    for part in inner:
      yield from _equations(part)


@functools.cache
def _program(implementation, q_len, heads, kv_len, kv_heads=(8, 8)):
  """Returns the equations of a decode step, by name, and sizes of results."""
  shape = jax.ShapeDtypeStruct
  k, v = (shape((8, kv_len, n, 128), jnp.bfloat16) for n in kv_heads)
  numbers = (shape((8, n), jnp.int32) for n in (q_len, kv_len))

  def step(q, k, v, *places):
    return attention.dot_product_attention(
      q, k, v, mask=masks.positions(*places), implementation=implementation
    )

  q = shape((8, q_len, heads, 128), jnp.bfloat16)
  return list(_equations(jax.make_jaxpr(step)(q, k, v, *numbers).jaxpr))


@pytest.mark.parametrize("implementation", ["tpu", "gpu"])
@pytest.mark.parametrize("kv_len", [32768, 32000])
def test_a_cache_is_read_where_it_lies(implementation, kv_len):
  equations = _program(implementation, 1, 32, kv_len)
  (kernel,) = [e for e in equations if e.primitive.name == "pallas_call"]
  grid = kernel.params["grid_mapping"].grid
  if implementation == "tpu":
    # Each block of keys once, for all heads.
    assert grid == (8, 1, 1, -(-kv_len // 128))
  else:
    # 8 parts for each of 64 heads of keys.
    assert grid == (8, 8, 8)
    # Which are not rounded before they are joined.
    assert kernel.outvars[0].aval.dtype == jnp.float32
  moved = {
    equation.primitive.name
    for equation in equations
    for x in equation.outvars
    if x.aval.size >= 8 * kv_len * 8 * 128
  }
  assert moved <= {"reshape"}


def test_fewer_heads_of_keys_share_a_tile_on_a_gpu():
  """Sigma's 32, 4 and 16: two query heads have both in common."""
  equations = _program("gpu", 1, 32, 32768, (4, 16))
  (kernel,) = [e for e in equations if e.primitive.name == "pallas_call"]
  # 4 parts of the keys for each of 128 tiles of heads.
  assert kernel.params["grid_mapping"].grid == (4, 16, 8)


@pytest.mark.parametrize("implementation", ["tpu", "gpu"])
def test_many_queries_keep_their_tiles(implementation):
  for q_len, heads in ((9, 8), (8, 512)):
    equations = _program(implementation, q_len, heads, 1024)
    (kernel,) = [e for e in equations if e.primitive.name == "pallas_call"]
    assert heads in kernel.params["grid_mapping"].grid
