"""The GPU kernels of linear attention against the float32 reference."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import features, linear_normalizers
from attention.kernels import linear_gpu, linear_gpu_memory
from tests.attention.kernel_runs import (
  assert_close,
  assert_same_bits,
  in_float32,
  with_gradients,
)

# Query and key lengths that fill no chunk, channels that take two tiles, and
# options.
CASES = {
  # phi(0) is 1: of padding, and of channels that are not there.
  "all": (70, 90, 24, 20, {"feature_map": features.elu_plus_one}),
  "two tiles of channels": (
    90,
    150,
    40,
    33,
    {
      "feature_map": features.sigmoid,
      "normalizer": linear_normalizers.identity(),
    },
  ),
  # Chunks are whole, and the last program has fewer of them.
  "subtraction": (
    64,
    160,
    16,
    16,
    {
      "feature_map": features.relu,
      "normalizer": linear_normalizers.subtraction(),
    },
  ),
  "heads of 96": (70, 101, 96, 96, {"feature_map": features.relu_epsilon}),
  "causal": (
    150,
    150,
    24,
    16,
    {"feature_map": features.elu_plus_one, "causal": True},
  ),
  "causal softmax": (
    50,
    50,
    16,
    16,
    {"feature_map": features.softmax, "causal": True},
  ),
}
BATCH, HEADS = 2, 3
TOLERANCE = {jnp.float32: 5e-6, jnp.bfloat16: 2e-2}


def _arguments(case, dtype, seed=0):
  q_len, kv_len, dim, v_dim, _ = CASES[case]
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), dtype)

  arrays = {
    "q": draw(BATCH, q_len, HEADS, dim),
    "k": draw(BATCH, kv_len, HEADS, dim),
    "v": draw(BATCH, kv_len, HEADS, v_dim),
    "key_gate": jnp.abs(draw(BATCH, kv_len, HEADS)),
  }
  return arrays, draw(BATCH, q_len, HEADS, v_dim)


def _with_gradients(case, implementation):
  kv_len, options = CASES[case][1], CASES[case][-1]
  function = functools.partial(
    attention.linear_attention,
    **options,
    lengths=jnp.array([kv_len, kv_len - 7]),
    implementation=implementation,
  )
  return with_gradients(function)


@pytest.mark.parametrize(
  ("case", "dtype"),
  [(case, jnp.float32) for case in CASES if case != "heads of 96"]
  + [("causal", jnp.bfloat16)],
)
def test_equals_the_reference_with_all_gradients(case, dtype, monkeypatch):
  # Two programs share the keys of a head.
  monkeypatch.setattr(linear_gpu_memory, "PROGRAMS", 2 * BATCH * HEADS)
  arrays, out_bar = _arguments(case, dtype)
  run = _with_gradients(case, "gpu_interpret")
  actual = run(arrays, out_bar)
  assert all(x.dtype == dtype for x in actual.values())
  expected = _with_gradients(case, "xla")(in_float32(arrays), out_bar)
  assert_close(actual, expected, TOLERANCE[dtype])
  assert_same_bits(actual, run(arrays, out_bar))


def _gated_arguments(dtype, gates):
  """Heads of 96 channels, gates of the shapes named, and what padding holds."""
  arrays, out_bar = _arguments("heads of 96", dtype, seed=1)
  rng = np.random.default_rng(2)
  kv_len = arrays["k"].shape[1]
  for name, shape in gates.items():
    sizes = {"batch": BATCH, "tokens": kv_len, "heads": HEADS, "one": 1}
    shape = [sizes[axis] for axis in shape.split()]
    # Of both signs, as learned ones may be.
    gate = 1 + 0.7 * rng.standard_normal(shape)
    arrays[name] = jnp.asarray(gate, jnp.float32)
  if "key_gate" not in gates:
    del arrays["key_gate"]
  return arrays, out_bar


@pytest.mark.parametrize(
  ("gates", "dtype"),
  [
    ({"key_gate": "one tokens heads", "value_gate": "one tokens heads"}, "f"),
    ({"value_gate": "batch tokens one"}, "f"),
    ({"key_gate": "one tokens heads", "value_gate": "one tokens heads"}, "b"),
  ],
)
def test_gates_and_padding_of_anything(gates, dtype, monkeypatch):
  monkeypatch.setattr(linear_gpu_memory, "PROGRAMS", 2 * BATCH * HEADS)
  dtype = {"f": jnp.float32, "b": jnp.bfloat16}[dtype]
  arrays, out_bar = _gated_arguments(dtype, gates)
  expected = _with_gradients("heads of 96", "xla")(in_float32(arrays), out_bar)
  kept = CASES["heads of 96"][1] - 7
  # The row that has padding, after its 7th last token.
  for name in ("k", "v"):
    arrays[name] = arrays[name].at[1, kept:].set(jnp.nan)
  actual = _with_gradients("heads of 96", "gpu_interpret")(arrays, out_bar)
  assert_close(actual, expected, TOLERANCE[dtype])
  for name in ("k", "v"):
    assert not actual[name][1, kept:].any()


def test_queries_that_see_no_key_get_zeros():
  x = jnp.ones((2, 5, 1, 16))
  out = attention.linear_attention(
    x, x, x, lengths=jnp.array([0, 3]), implementation="gpu_interpret"
  )
  np.testing.assert_array_equal(out[0], 0)
  np.testing.assert_allclose(out[1], 1, rtol=1e-5)


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"feature_map": features.taylor}, "feature_map is"),
    ({"feature_map": features.softmax}, "softmax for powers of two"),
    ({"causal": False}, "normalizer is None"),
    ({"decay": jnp.zeros(1)}, "decay is given"),
    ({"write_strength": jnp.ones((1, 8, 1))}, "write_strength is given"),
    ({"return_state": True}, "a state is passed on"),
    ({"v": jnp.zeros((1, 8, 1, 160))}, "heads are wider than 128"),
    ({"k": jnp.zeros((1, 8, 1, 24), jnp.bfloat16)}, "k bfloat16"),
    ({}, None),
  ],
)
def test_says_what_it_cannot_take(change, reason):
  x = jnp.zeros((1, 8, 1, 24))
  arguments = {"q": x, "k": x, "v": x, "feature_map": features.relu}
  arguments |= {"normalizer": None, "causal": True, "decay": None}
  arguments |= {"write_strength": None}
  arguments |= {"state": None, "return_state": False, **change}
  said = linear_gpu.unsupported_gpu(**arguments)
  assert said is None if reason is None else reason in said
