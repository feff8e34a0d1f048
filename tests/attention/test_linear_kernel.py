"""The TPU kernel of linear attention against the reference, and compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import features, linear_normalizers
from tests.attention.kernel_runs import (
  assert_close,
  assert_same_bits,
  in_float32,
  with_gradients,
)

BASED = {
  "feature_map": features.taylor,
  "causal": True,
  "normalizer": linear_normalizers.division(1e-12, per_key=False),
}
# dtype, shapes (batch, q_len, kv_len, heads, k_heads, dim, v_dim), options.
CASES = {
  "lina": ("float32", (1, 37, 37, 3, 3, 12, 12), {}),
  "cross, grouped": ("float32", (2, 530, 21, 2, 1, 8, 5), {}),
  "causal, two chunks": (
    "float32",
    (1, 300, 300, 1, 1, 8, 6),
    {"causal": True, "feature_map": features.elu_plus_one},
  ),
  "inline": (
    "float32",
    (1, 20, 20, 2, 2, 8, 8),
    {
      "feature_map": features.relu,
      "normalizer": linear_normalizers.subtraction(),
    },
  ),
  "sigmoid": (
    "float32",
    (1, 20, 20, 1, 1, 8, 8),
    {"feature_map": features.sigmoid},
  ),
  "softmax": (
    "float32",
    (1, 20, 20, 1, 1, 8, 8),
    {"feature_map": features.softmax},
  ),
  "based": ("float32", (1, 40, 40, 3, 3, 4, 6), BASED),
  "based, half": ("bfloat16", (1, 40, 40, 1, 1, 4, 6), BASED),
  "lina, half": ("bfloat16", (2, 33, 33, 1, 1, 12, 12), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
  dtype, shape, options = CASES[case]
  batch, q_len, kv_len, heads, k_heads, dim, v_dim = shape
  shapes = {
    "q": (batch, q_len, heads, dim),
    "k": (batch, kv_len, k_heads, dim),
    "v": (batch, kv_len, heads, v_dim),
    "key_gate": (batch, kv_len, heads),
    "value_gate": (1, kv_len, 1),
    "weight": (batch, q_len, heads, v_dim),
  }
  keys = jax.random.split(jax.random.key(len(case)), len(shapes))
  arrays = {
    name: jax.random.normal(key, shape).astype(dtype)
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }
  out_bar = arrays.pop("weight")
  for name in ("key_gate", "value_gate"):
    arrays[name] = arrays[name].astype(jnp.float32)
  arrays["key_gate"] = 1 + 0.1 * jnp.tanh(arrays["key_gate"])
  ours, reference = (
    with_gradients(
      functools.partial(
        attention.linear_attention,
        lengths=jnp.arange(batch) + kv_len - 3,
        implementation=implementation,
        **options,
      )
    )
    for implementation in ("tpu_interpret", "xla")
  )
  actual = ours(arrays, out_bar)
  for name, x in arrays.items():
    assert actual[name].dtype == x.dtype
  expected = reference(in_float32(arrays), out_bar)
  # Features and memory are float32 in both: bfloat16 rounds results alone.
  assert_close(actual, expected, 2e-5 if dtype == "float32" else 1e-2)
  if case == "lina":
    assert_same_bits(actual, ours(arrays, out_bar))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"feature_map": features.taylor_compact}, "feature_map is"),
    ({"causal": True, "decay": jnp.zeros(2)}, "does not decay"),
    ({"return_state": True}, "a state is passed on"),
  ],
)
def test_reasons(options, message):
  x = jnp.ones((1, 4, 2, 4))
  with pytest.raises(ValueError, match=message):
    attention.linear_attention(x, x, x, implementation="tpu", **options)


# Shapes of q and k, of v, options.
SIZES = {
  "relu 4k": (
    (64, 4096, 8, 64),
    (64, 4096, 8, 64),
    {"feature_map": features.relu},
  ),
  "lina 320": ((8, 320, 16, 96), (8, 320, 16, 96), {}),
  "lina 5120": ((1, 5120, 16, 96), (1, 5120, 16, 96), {}),
  "based 360m": ((8, 2048, 16, 16), (8, 2048, 16, 64), BASED),
  "based 32k": ((1, 32768, 16, 16), (1, 32768, 16, 64), BASED),
}
CHIPS = [
  *(("v5e", name) for name in SIZES if name != "lina 320"),
  ("v4", "lina 320"),
  ("v5p", "based 32k"),
  ("v6e", "lina 320"),
  ("tpu7x", "based 32k"),
]


# The compiler for the chip takes that long.
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize(("chip", "size"), CHIPS)
def test_compiles(chip, size):
  pytest.importorskip("libtpu")
  from tools import compile_only

  qk, values, options = SIZES[size]

  def train(q, k, v):
    out, pull = jax.vjp(
      lambda *x: attention.linear_attention(
        *x, implementation="tpu", **options
      ),
      q,
      k,
      v,
    )
    return out, pull(out)

  arrays = [jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in (qk, qk, values)]
  memory = compile_only.compile_for(chip, train, *arrays).memory_analysis()
  # Sums and their gradient in float32 and the transposed copies, all linear in
  # the length; no features (273 / 64 of v in float32) and no memories.
  # The chip pads the last axis to 128 lanes.
  padded = 2 * 3 * 128 * np.prod(qk[:3])
  assert memory.temp_size_in_bytes < 5 * padded
