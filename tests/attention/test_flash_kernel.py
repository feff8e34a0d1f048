"""The flash kernel for TPU, by Pallas's interpreter, against the reference."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

import attention
from attention import finishes, masks, normalizers, scores
from attention.kernels import flash_tpu, flash_tpu_grid
from tests.attention import slots

BATCH, HEADS, Q_LEN, KV_LEN, DIM, V_DIM = 2, 3, 140, 160, 24, 40
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
  """Several tiles, and several parts of a tile, at small sizes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flash_tpu, "BLOCK", 128)
    patch.setattr(flash_tpu_grid, "ROWS", 64)
    yield


def normal(*shape, dtype=jnp.float32):
  return jnp.asarray(rng.standard_normal(shape), dtype)


def segment_numbers(length):
  return jnp.asarray(np.sort(rng.integers(0, 3, (BATCH, length)), axis=-1))


def cosine(score, batch, head, q_index, k_index, slope, row, column):
  offset = (q_index - k_index).astype(jnp.float32)
  return score * jnp.exp(0.1 * slope) + row * column * jnp.cos(offset)


# For each case the arrays by name, and the slots as a function of them.
CASES = {
  "grouped heads": ({}, dict),
  "sliding window": ({}, lambda: {"mask": masks.sliding_window(40, 3)}),
  "blocks and causal": (
    {},
    lambda: {
      "mask": masks.causal(KV_LEN - Q_LEN)
      & masks.blocks(np.array([[0, 1], [1, 0]], bool), 128)
    },
  ),
  "no key for some": (
    {"lengths": jnp.array([0, 77])},
    lambda lengths: {"mask": masks.padding(lengths)},
  ),
  "bias": (
    {"bias": normal(BATCH, HEADS, Q_LEN, KV_LEN)},
    lambda bias: {"bias": bias},
  ),
  "bias shared by the batch, masked": (
    {"bias": normal(HEADS, Q_LEN, KV_LEN)},
    lambda bias: {"bias": bias, "mask": masks.causal()},
  ),
  "bias shared by the heads": (
    {"bias": normal(BATCH, 1, Q_LEN, KV_LEN)},
    lambda bias: {"bias": bias},
  ),
  "factored bias": (
    {"a": normal(1, Q_LEN, HEADS, 3), "b": normal(BATCH, KV_LEN, 1, 3)},
    lambda a, b: {"score_mods": scores.factored_bias(a, b)},
  ),
  "scale, alibi, soft cap and sink": (
    {
      "scale": normal(HEADS, 1),
      "slopes": normal(HEADS),
      "sink": normal(HEADS),
    },
    lambda scale, slopes, sink: {
      "scale": scale,
      "score_mods": [
        scores.alibi(0.1 * slopes, symmetric=True),
        scores.soft_cap(5.0),
      ],
      "normalizer": normalizers.softmax_with_sink(sink),
    },
  ),
  "function": (
    {
      "slope": normal(HEADS),
      "row": normal(BATCH, Q_LEN),
      "column": normal(HEADS, KV_LEN),
    },
    lambda slope, row, column: {
      "score_mods": scores.function(
        cosine, {"h": slope, "bq": row, "hk": column}
      )
    },
  ),
  "reweighted softplus": (
    {},
    lambda: {
      "normalizer": normalizers.reweighted_softplus(3.0),
      "mask": masks.causal(),
    },
  ),
  "sigmoid": (
    {},
    lambda: {"normalizer": normalizers.sigmoid(), "mask": masks.causal()},
  ),
  "affine and gate": (
    {
      "alpha": normal(BATCH, Q_LEN, HEADS),
      "mean": normal(HEADS),
      "gate": normal(BATCH, Q_LEN, HEADS, V_DIM),
    },
    lambda alpha, mean, gate: {
      "normalizer": normalizers.affine(alpha, mean),
      "mask": masks.causal(),
      "finish": finishes.gate(gate),
    },
  ),
}
MASKS = {
  "inward window": masks.inward_window((2, 8, 10), (None, 2, 3)),
  "segments or prefix": masks.segments(segment_numbers(KV_LEN))
  | masks.prefix(5),
  "dense": masks.dense(
    jnp.asarray(rng.random((1, HEADS, KV_LEN, KV_LEN)) < 0.1)
  ),
  "not sliding": ~masks.sliding_window(20, 20),
  "function": masks.function(lambda b, h, q, k: (q + k + h + b) % 3 == 0),
}


def call_with_gradients(implementation, call, inputs, names):
  """Returns the outputs and the gradients of all floating inputs by name."""
  floating = {
    name: x
    for name, x in inputs.items()
    if jnp.issubdtype(x.dtype, jnp.floating)
  }

  def loss(floating):
    values = inputs | floating
    out = attention.dot_product_attention(
      values["queries"],
      values["keys"],
      values["values"],
      implementation=implementation,
      **call(*(values[name] for name in names)),
    )
    weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32))
    return jnp.sum(out.astype(jnp.float32).ravel() * weights), out

  run = jax.jit(jax.grad(loss, has_aux=True))
  gradients, out = run(floating)
  for x, again in zip(
    jax.tree.leaves((gradients, out)),
    jax.tree.leaves(run(floating)),
    strict=True,
  ):
    np.testing.assert_array_equal(x, again, err_msg="of a second run")
  return {"out": out} | {f"gradient of {k}": v for k, v in gradients.items()}


def inputs_of(arrays, k_heads=HEADS, dtype=jnp.float32):
  return {
    "queries": normal(BATCH, Q_LEN, HEADS, DIM, dtype=dtype),
    "keys": normal(BATCH, KV_LEN, k_heads, DIM, dtype=dtype),
    "values": normal(BATCH, KV_LEN, HEADS, V_DIM, dtype=dtype),
    **arrays,
  }


def assert_near(actual, expected, tolerance):
  assert actual.keys() == expected.keys()
  for name, want in expected.items():
    want = np.asarray(want, np.float32)
    np.testing.assert_allclose(
      np.asarray(actual[name], np.float32),
      want,
      rtol=0,
      atol=tolerance * max(np.abs(want).max(), 1e-3),
      err_msg=name,
    )


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name):
  arrays, call = CASES[name]
  k_heads = 1 if name == "grouped heads" else HEADS
  inputs = inputs_of(arrays, k_heads)
  run = functools.partial(
    call_with_gradients, call=call, inputs=inputs, names=tuple(arrays)
  )
  assert_near(run("tpu_interpret"), run("xla"), 2e-5)


@pytest.mark.parametrize("name", ["sliding window", "factored bias"])
def test_bfloat16_is_near_the_float32_reference(name):
  arrays, call = CASES[name]
  inputs = inputs_of(arrays, dtype=jnp.bfloat16)
  exact = {
    key: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
    for key, x in inputs.items()
  }
  actual = call_with_gradients("tpu_interpret", call, inputs, tuple(arrays))
  assert actual["out"].dtype == jnp.bfloat16
  expected = call_with_gradients("xla", call, exact, tuple(arrays))
  assert_near(actual, expected, 2e-2)


@pytest.mark.parametrize("name", MASKS)
def test_masks_equal_the_reference(name):
  q, k, v = (normal(BATCH, KV_LEN, HEADS, DIM) for _ in range(3))
  actual, expected = (
    attention.dot_product_attention(
      q, k, v, mask=MASKS[name], implementation=implementation
    )
    for implementation in ("tpu_interpret", "xla")
  )
  assert_near({"out": actual}, {"out": expected}, 2e-5)


def test_positions_stay_exact_beside_bfloat16():
  # Products of positions cancel: with bfloat16 factors the bias is off by 0.5.
  slopes = jnp.array([0.5] * HEADS)
  q, k, v = (
    normal(1, KV_LEN, HEADS, DIM, dtype=jnp.bfloat16) for _ in range(3)
  )
  factored, direct = (
    attention.dot_product_attention(
      q, k, v, score_mods=mod, implementation="tpu_interpret"
    )
    for mod in (
      scores.alibi_factors(slopes, KV_LEN, KV_LEN),
      scores.alibi(slopes),
    )
  )
  assert_near({"out": factored}, {"out": direct}, 1e-2)


def test_log_sum_exp_and_its_gradient():
  inputs = inputs_of({})
  mask = masks.causal() & ~masks.prefix(3)

  def loss(inputs, implementation):
    result = attention.dot_product_attention(
      inputs["queries"],
      inputs["keys"],
      inputs["values"],
      mask=mask,
      return_log_sum_exp=True,
      implementation=implementation,
    )
    lse = result.log_sum_exp
    seen = jnp.isfinite(lse)
    total = jnp.sum(jnp.where(seen, lse, 0.0) ** 2)
    return total + jnp.sum(result.out), {"lse": jnp.where(seen, lse, -1e3)}

  results = [
    jax.grad(loss, has_aux=True)(inputs, implementation)
    for implementation in ("tpu_interpret", "xla")
  ]
  (actual, actual_lse), (expected, expected_lse) = results
  # The first three queries see nothing.
  assert (actual_lse["lse"][:, :, :3] == -1e3).all()
  assert (actual_lse["lse"][:, :, 3:] > -1e3).all()
  assert_near(actual | actual_lse, expected | expected_lse, 2e-5)


def test_a_mesh_of_devices_splits_the_batch():
  arrays, call = CASES["function"]
  inputs = inputs_of(arrays)
  mesh = jax.make_mesh(
    (2, 1, 1),
    ("data", "fsdp", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  whole = call_with_gradients("tpu_interpret", call, inputs, tuple(arrays))
  with jax.set_mesh(mesh):
    split = call_with_gradients("tpu_interpret", call, inputs, tuple(arrays))
  assert_near(split, whole, 1e-5)


@hypothesis.settings(max_examples=5, deadline=None, derandomize=True)
@hypothesis.given(seed=strategies.integers(0, 1000))
def test_any_slots_equal_their_formula(seed):
  drawn = slots.draw_slots(
    seed, q_len=140, kv_len=140, heads=4, k_heads=2, v_heads=1, block=128
  )
  arrays = dict(drawn.arrays)
  kwargs = drawn.kwargs(arrays)
  expected = drawn.reference(arrays)
  q, k, v = (arrays[name] for name in "qkv")
  try:
    actual = attention.dot_product_attention(
      q, k, v, **kwargs, implementation="tpu_interpret"
    )
  except ValueError as error:
    # The one refusal that a draw may meet.
    if "a modification that does not add" not in str(error):
      raise
    hypothesis.reject()
  np.testing.assert_allclose(
    actual, expected.out, rtol=0, atol=2e-4, err_msg=drawn.name
  )


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
    ({"mask": masks.blocks(np.ones((2, 2), bool), 4)}, "multiples of 8 x 128"),
  ],
)
def test_pallas_says_why_it_cannot(change, reason):
  x = normal(1, 8, 2, 4)
  with pytest.raises(ValueError, match=reason):
    attention.dot_product_attention(x, x, x, implementation="tpu", **change)
  # The reference takes them all.
  attention.dot_product_attention(x, x, x, implementation="auto", **change)


def test_float16_is_left_to_the_reference():
  x = normal(1, 8, 2, 4, dtype=jnp.float16)
  with pytest.raises(ValueError, match="float16"):
    attention.dot_product_attention(x, x, x, implementation="tpu")


def test_no_kernel_for_the_processor_here():
  x = normal(1, 8, 2, 4)
  with pytest.raises(ValueError, match="platform 'cpu'"):
    attention.dot_product_attention(x, x, x, implementation="pallas")
