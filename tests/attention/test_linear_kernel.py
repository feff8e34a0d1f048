"""The TPU kernel of linear attention against the reference, and compiled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import features, linear_normalizers
from attention.kernels import linear, linear_memory, linear_plan
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
# Heads are not whole registers, values are wider than keys and the other way.
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
  "identity, odd": (
    "bfloat16",
    (2, 20, 33, 3, 1, 80, 97),
    {
      "feature_map": features.identity,
      "normalizer": linear_normalizers.identity(),
    },
  ),
  "causal inline map, half": (
    "bfloat16",
    (2, 140, 140, 2, 2, 16, 32),
    {"causal": True, "feature_map": features.relu},
  ),
  "inline, half": (
    "bfloat16",
    (2, 20, 30, 2, 2, 12, 7),
    {
      "feature_map": features.relu,
      "normalizer": linear_normalizers.subtraction(),
    },
  ),
  "based": ("float32", (1, 40, 40, 3, 3, 4, 6), BASED),
  "based, half": ("bfloat16", (1, 40, 40, 1, 1, 4, 6), BASED),
  "lina, half": ("bfloat16", (2, 33, 33, 1, 1, 12, 12), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
  _compare(*CASES[case], seed=len(case), again=case == "lina")


# Steps of one part, several steps of several parts, several heads a step.
@pytest.mark.parametrize(("block_bytes", "part"), [(1, 128), (32768, 256)])
@pytest.mark.parametrize("causal", [False, True])
def test_steps(causal, block_bytes, part, monkeypatch):
  monkeypatch.setattr(linear_plan, "BLOCK_BYTES", block_bytes)
  monkeypatch.setattr(linear, "PART", part)
  options = {"causal": causal}
  _compare("float32", (2, 700, 700, 4, 4, 8, 16), options, seed=part)


def _compare(dtype, shape, options, *, seed, again=False):
  """Compares values and gradients with gates and padding to the reference's."""
  batch, q_len, kv_len, heads, k_heads, dim, v_dim = shape
  shapes = {
    "q": (batch, q_len, heads, dim),
    "k": (batch, kv_len, k_heads, dim),
    "v": (batch, kv_len, heads, v_dim),
    "key_gate": (batch, kv_len, heads),
    "value_gate": (1, kv_len, 1),
    "weight": (batch, q_len, heads, v_dim),
  }
  keys = jax.random.split(jax.random.key(seed), len(shapes))
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
  if again:
    assert_same_bits(actual, ours(arrays, out_bar))


def test_memories_of_bfloat16_calls():
  # What a result rounds to does not show whether the memory is good.
  q, k, v = _draw(0, "bfloat16", *[(1, 3, 16, 300)] * 3)
  gate = jax.nn.sigmoid(_draw(1, "float32", (1, 1, 1, 300))[0])
  plan = linear_plan.Plan(
    features.relu_epsilon,
    linear_normalizers.division(),
    features=16,
    v_dim=16,
    dim=16,
    dtype="bfloat16",
    part=512,
    padded=False,
    interpret=True,
  )
  lengths = jnp.array([300], jnp.int32)

  def make(plan, k, v):
    return linear_memory.make(plan, k, v, gate, None, lengths)

  def pull(plan, q, k, v):
    memory = make(plan, k, v)
    read = lambda memory: linear_memory.read(plan, q, memory, lengths)
    out, pull = jax.vjp(read, memory)
    # A gradient of bfloat16 numbers, the same for both.
    return memory, pull(v.astype(out.dtype))

  actual = jax.jit(functools.partial(pull, plan))(q, k, v)
  plan = dataclasses.replace(plan, dtype="float32")
  expected = jax.jit(functools.partial(pull, plan))(*in_float32((q, k, v)))
  assert_close(actual, expected, 1e-5)


def _draw(seed, dtype, *shapes):
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return [
    jax.random.normal(key, shape).astype(dtype)
    for key, shape in zip(keys, shapes, strict=True)
  ]


@pytest.mark.parametrize("causal", [False, True])
def test_padding_holds_anything(causal):
  shape = 2, 40, 2, 8
  q, k, v, bar = _draw(3, "float32", *[shape] * 4)
  gate = jnp.ones(shape[:3])
  lengths = jnp.array([0, 29])
  padding = jnp.arange(40)[None] >= lengths[:, None]

  def train(q, k, v, gate):
    function = functools.partial(
      attention.linear_attention,
      lengths=lengths,
      causal=causal,
      implementation="tpu_interpret",
    )
    out, pull = jax.vjp(
      lambda q, k, v, gate: function(q, k, v, key_gate=gate, value_gate=gate),
      q,
      k,
      v,
      gate,
    )
    return out, pull(bar)

  def spoilt(x):
    wide = padding.reshape(padding.shape + (1,) * (x.ndim - 2))
    return jnp.where(wide, jnp.nan, x)

  run = jax.jit(train)
  expected = run(q, k, v, gate)
  nan = [spoilt(x) for x in (k, v, gate)]
  actual = run(spoilt(q) if causal else q, *nan)
  assert_same_bits(actual, expected)
  out, (q_bar, *key_bars) = actual
  for x in (*key_bars, out, q_bar) if causal else key_bars:
    assert not np.any(np.asarray(x)[np.asarray(padding)])
  # No key at all.
  assert not np.any(out[0])
  assert not np.any(q_bar[0])


def test_split_over_devices():
  mesh = jax.make_mesh(
    (2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  q, k, v = _draw(5, "float32", *[(2, 20, 2, 8)] * 3)
  (gate,) = _draw(6, "float32", (1, 20, 2))
  run = lambda implementation: jax.jit(
    jax.value_and_grad(
      lambda q, k, v, gate: jnp.sum(
        attention.linear_attention(
          q,
          k,
          v,
          key_gate=jax.nn.sigmoid(gate),
          lengths=jnp.array([20, 13]),
          implementation=implementation,
        )
        ** 2
      ),
      argnums=(0, 1, 2, 3),
    )
  )(q, k, v, gate)
  expected = run("xla")
  with jax.set_mesh(mesh):
    assert_close(run("tpu_interpret"), expected, 2e-5)


def test_auto_takes_the_kernel_on_a_tpu(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  taken = []
  monkeypatch.setattr(
    linear, "attend", lambda q, *_, **options: taken.append(options) or q
  )
  x = jnp.ones((1, 4, 2, 4))
  attention.linear_attention(x, x, x)
  assert [options["interpret"] for options in taken] == [False]
  attention.linear_attention(x, x, x, causal=True, decay=jnp.zeros(2))
  assert len(taken) == 1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"feature_map": features.taylor_compact}, "feature_map is"),
    ({"causal": True, "decay": jnp.zeros(2)}, "does not decay"),
    ({"return_state": True}, "a state is passed on"),
    (
      {"causal": True, "normalizer": linear_normalizers.subtraction()},
      "keeps no mean",
    ),
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
  # The memory and its gradient, less than a thirtieth of an array of so many
  # tokens: no array is copied, and no features or float32 sums are written.
  # Causal gradients have two numbers for each query besides.
  assert memory.temp_size_in_bytes < 0.2 * 2 * np.prod(values)
