"""The GPU kernels of linear attention against the float32 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import features, linear_normalizers
from attention.kernels import linear_gpu

# Query and key lengths that fill no chunk, channels that take two tiles, and
# options.
CASES = {
  "all": (70, 90, 24, 20, {"feature_map": features.relu_epsilon}),
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

  # Kernels are compiled more than they are run.
  @functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  def run(arrays, out_bar):
    out, pull = jax.vjp(lambda a: function(**a), arrays)
    return {"out": out, **pull(out_bar.astype(out.dtype))[0]}

  return run


@pytest.mark.parametrize(
  ("case", "dtype"),
  [(case, jnp.float32) for case in CASES] + [("causal", jnp.bfloat16)],
)
def test_equals_the_reference_with_all_gradients(case, dtype, monkeypatch):
  # Two programs share the keys of a head.
  monkeypatch.setattr(linear_gpu, "PROGRAMS", 2 * BATCH * HEADS)
  arrays, out_bar = _arguments(case, dtype)
  run = _with_gradients(case, "gpu_interpret")
  actual, again = run(arrays, out_bar), run(arrays, out_bar)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
  expected = _with_gradients(case, "xla")(wide, out_bar)
  for name, want in expected.items():
    assert actual[name].dtype == dtype
    have = np.asarray(actual[name], np.float32)
    error = np.linalg.norm(have - want) / np.linalg.norm(want)
    assert error < TOLERANCE[dtype], f"{name}: {error}"
    np.testing.assert_array_equal(actual[name], again[name], err_msg=name)


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"feature_map": features.taylor}, "feature_map is"),
    ({"feature_map": features.softmax}, "softmax for powers of two"),
    ({"decay": jnp.zeros(1)}, "decay is given"),
    ({"return_state": True}, "a state is passed on"),
    ({"v": jnp.zeros((1, 8, 1, 160))}, "heads are wider than 128"),
    ({"k": jnp.zeros((1, 8, 1, 24), jnp.bfloat16)}, "k bfloat16"),
    ({}, None),
  ],
)
def test_says_what_it_cannot_take(change, reason):
  x = jnp.zeros((1, 8, 1, 24))
  arguments = {"q": x, "k": x, "v": x, "feature_map": features.relu}
  arguments |= {"decay": None, "state": None, "return_state": False, **change}
  said = linear_gpu.unsupported_gpu(**arguments)
  assert said is None if reason is None else reason in said
