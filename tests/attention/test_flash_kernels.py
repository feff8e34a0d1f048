"""The flash kernels, by Pallas's interpreter, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, scores
from attention.kernels import flash, flash_gpu, flash_tpu, flash_tpu_grid
from tests.attention import kernel_runs, slot_kinds, slots

INTERPRETED = pytest.mark.parametrize(
  "implementation", ["tpu_interpret", "gpu_interpret"]
)
# Of differences as `kernel_runs.assert_close` takes them.
TOLERANCE, NARROW_TOLERANCE = 3e-5, 2e-2


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
  """Several tiles, and several parts of a tile, at small sizes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flash_tpu, "BLOCK", 128)
    patch.setattr(flash_tpu_grid, "ROWS", 64)
    yield


KINDS = slot_kinds.cover(slot_kinds.for_kernels, slot_kinds.as_kernels_see)
# Heads of queries, keys and values: neighbours share none, one or both.
HEADS = [(4, 2, 4), (3, 3, 1), (2, 2, 2)]


def _draw(number):
  """Returns slots at sizes that no tile divides, but some without a mask."""
  kinds = KINDS[number]
  heads, k_heads, v_heads = HEADS[number % len(HEADS)]
  whole = not kinds.masks and number % 2
  return slots.draw_slots(
    number,
    kinds,
    q_len=140,
    kv_len=128 if whole else 140 if "grid" in kinds.masks else 150,
    heads=heads,
    k_heads=k_heads,
    v_heads=v_heads,
    dim=40,
    v_dim=24,
    block=128,
  )


def _attend(kwargs, implementation):
  def attend(**arrays):
    q, k, v = (arrays[name] for name in "qkv")
    return attention.dot_product_attention(
      q, k, v, **kwargs(arrays), implementation=implementation
    )

  return attend


def _like_output(arrays, seed=0):
  shape = (*arrays["q"].shape[:-1], arrays["v"].shape[-1])
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, jnp.float32)


def _run(kwargs, implementation, arrays):
  run = kernel_runs.with_gradients(_attend(kwargs, implementation))
  return run(arrays, _like_output(arrays))


@functools.cache
def _expected(number):
  drawn = _draw(number)
  return _run(drawn.kwargs, "xla", drawn.arrays)


# Slow: much in few calls, each of four kernels or more to be compiled.
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KINDS)), ids=map(str, KINDS))
@INTERPRETED
def test_every_pair_of_slots_equals_the_reference(implementation, number):
  drawn = _draw(number)
  actual = _run(drawn.kwargs, implementation, drawn.arrays)
  kernel_runs.assert_close(actual, _expected(number), TOLERANCE)


def _normal(rng, *shape, dtype=jnp.float32):
  return jnp.asarray(rng.standard_normal(shape), dtype)


def _narrow():
  """Arrays in bfloat16 and slots: positions in factors, and a dense bias."""
  rng = np.random.default_rng(1)
  arrays = {
    "q": _normal(rng, 2, 140, 4, 40, dtype=jnp.bfloat16),
    "k": _normal(rng, 2, 150, 2, 40, dtype=jnp.bfloat16),
    "v": _normal(rng, 2, 150, 4, 24, dtype=jnp.bfloat16),
    "bias": _normal(rng, 1, 4, 140, 150),
    # Products of positions cancel: with factors in bfloat16 scores would be off
    # by a half.
    "slopes": jnp.full(4, 0.5),
  }

  def kwargs(arrays):
    mods = [
      scores.bias(arrays["bias"]),
      scores.alibi_factors(arrays["slopes"], 140, 150),
    ]
    return {"score_mods": mods, "mask": masks.sliding_window(40, 3)}

  return arrays, kwargs


@INTERPRETED
def test_bfloat16_and_the_same_bits_twice(implementation):
  arrays, kwargs = _narrow()
  run = kernel_runs.with_gradients(_attend(kwargs, implementation))
  out_bar = _like_output(arrays)
  actual = run(arrays, out_bar)
  assert actual["out"].dtype == jnp.bfloat16
  for name, x in arrays.items():
    assert actual[name].dtype == x.dtype, name
  expected = _run(kwargs, "xla", kernel_runs.in_float32(arrays))
  kernel_runs.assert_close(actual, expected, NARROW_TOLERANCE)
  kernel_runs.assert_same_bits(actual, run(arrays, out_bar))


@INTERPRETED
def test_log_sum_exp_and_its_gradient(implementation):
  rng = np.random.default_rng(2)
  q, k, v = (_normal(rng, 1, 140, 2, 16) for _ in range(3))
  # The first three queries see nothing.
  mask = masks.causal() & ~masks.prefix(3)

  def run(implementation):
    def loss(arrays):
      result = attention.dot_product_attention(
        *arrays,
        mask=mask,
        return_log_sum_exp=True,
        implementation=implementation,
      )
      lse = result.log_sum_exp
      seen = jnp.isfinite(lse)
      total = jnp.sum(jnp.where(seen, lse, 0.0) ** 2)
      return total + jnp.sum(jnp.sin(result.out)), lse

    return jax.jit(jax.grad(loss, has_aux=True))((q, k, v))

  (actual, lse), (expected, exact) = run(implementation), run("xla")
  assert (lse[:, :, :3] == -jnp.inf).all()
  kernel_runs.assert_close(actual, expected, TOLERANCE)
  kernel_runs.assert_close(lse[:, :, 3:], exact[:, :, 3:], TOLERANCE)


@INTERPRETED
def test_a_mesh_of_devices_splits_batch_and_heads(implementation):
  rng = np.random.default_rng(3)
  arrays = {name: _normal(rng, 2, 40, 2, 16) for name in "qkv"}
  arrays |= {"slopes": _normal(rng, 2), "row": _normal(rng, 2, 40)}

  def change(score, batch, head, q_index, k_index, slope, row):
    place = batch + 2 * head + q_index - k_index
    return score * slope + row * jnp.cos(place.astype(jnp.float32))

  def kwargs(arrays):
    values = {"h": arrays["slopes"], "bq": arrays["row"]}
    lengths = masks.padding(jnp.array([40, 23]))
    return {"score_mods": scores.function(change, values), "mask": lengths}

  mesh = jax.make_mesh(
    (2, 1, 2),
    ("data", "fsdp", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  expected = _run(kwargs, "xla", arrays)
  with jax.set_mesh(mesh):
    actual = _run(kwargs, implementation, arrays)
  kernel_runs.assert_close(actual, expected, TOLERANCE)


@pytest.mark.parametrize("implementation", ["tpu", "gpu"])
@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"return_weights": True}, "only the reference has the weights"),
    (
      {
        "score_mods": [
          scores.soft_cap(1.0),
          scores.factored_bias(jnp.ones((8, 1, 1)), jnp.ones((8, 1, 1))),
        ]
      },
      "after a modification that does not add",
    ),
    (
      {"mask": masks.blocks(np.ones((2, 2), bool), 4)},
      "multiples of 8 x 128|smaller than 16 x 16",
    ),
  ],
)
def test_pallas_says_why_it_cannot(implementation, change, reason):
  x = jax.ShapeDtypeStruct((1, 8, 2, 4), jnp.float32)

  def run(implementation):
    attend = functools.partial(
      attention.dot_product_attention, implementation=implementation, **change
    )
    jax.eval_shape(attend, x, x, x)

  with pytest.raises(ValueError, match=reason):
    run(implementation)
  # The reference takes them all.
  run("auto")


def test_float16_is_left_to_the_reference():
  x = jnp.zeros((1, 8, 2, 4), jnp.float16)
  for implementation in ("tpu", "gpu"):
    with pytest.raises(ValueError, match="float16"):
      attention.dot_product_attention(x, x, x, implementation=implementation)


def test_no_kernel_for_the_processor_here():
  x = jnp.zeros((1, 8, 2, 4))
  with pytest.raises(ValueError, match="platform 'cpu'"):
    attention.dot_product_attention(x, x, x, implementation="pallas")


@pytest.mark.parametrize(
  ("dim", "v_dim", "mask", "reason"),
  [
    (300, 16, None, "q has heads of dimension 300"),
    (64, 160, None, "v of 160"),
    (16, 16, masks.blocks(np.ones((4, 4), bool), 8), "tiles of 8 x 8"),
    (256, 256, masks.causal(), None),
  ],
)
def test_gpu_says_what_it_cannot_take(dim, v_dim, mask, reason):
  q = jnp.zeros((1, 32, 1, dim), jnp.bfloat16)
  v = jnp.zeros((1, 32, 1, v_dim), jnp.bfloat16)
  said = flash.unsupported("gpu", q, q, v, [], mask)
  assert said is None if reason is None else reason in said


def test_tiles_on_gpus_are_powers_of_two_that_the_mask_allows():
  q = jnp.zeros((1, 1000, 1, 64), jnp.bfloat16)
  k = jnp.zeros((1, 33, 1, 64), jnp.bfloat16)
  assert flash_gpu.block_sizes(q, k, None) == (128, 64)
  table = np.ones((21, 1), bool)
  assert flash_gpu.block_sizes(q, k, masks.blocks(table, 48)) == (16, 16)
