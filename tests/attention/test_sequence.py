"""Attention of sequences that devices have parts of, as on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import (
  features,
  linear_normalizers,
  masks,
  normalizers,
  scores,
)
from attention.kernels import dispatch, flash_sequence, flash_tpu
from tests.attention import kernel_runs
from training import sharding

BATCH, LENGTH, HEADS, DIM = 2, 512, 4, 16


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flash_tpu, "BLOCK", 128)
    yield


def mesh_of(**sizes):
  sizes = [sizes.get(axis, 1) for axis in sharding.AXES]
  return jax.make_mesh(
    sizes, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(sizes)
  )


def _arrays(dtype=jnp.float32, **more):
  rng = np.random.default_rng(0)
  shapes = {
    "q": (BATCH, LENGTH, HEADS, DIM),
    "k": (BATCH, LENGTH, HEADS // 2, DIM),
    "v": (BATCH, LENGTH, HEADS // 2, DIM),
    "out_bar": (BATCH, LENGTH, HEADS, DIM),
    **more,
  }
  return {
    name: jnp.asarray(rng.standard_normal(shape), dtype)
    for name, shape in shapes.items()
  }


def _causal(_):
  return {"mask": masks.causal()}


def _window(arrays):
  # A number a head, a row, a key and a score; places of all axes.
  def change(score, batch, head, q_index, k_index, slope, row, key):
    place = batch + 2 * head + q_index - k_index
    return score * slope + row * jnp.cos(place.astype(jnp.float32)) + key

  values = {name: arrays[name] for name in ("h", "bq", "bk")}
  return {
    "mask": masks.sliding_window(150),
    "score_mods": [
      scores.function(change, values),
      scores.bias(arrays["bias"]),
    ],
    "normalizer": normalizers.softmax_with_sink(arrays["sink"]),
  }


def _segments(arrays):
  numbers = np.cumsum(np.arange(LENGTH) % 200 == 0)[None, :]
  numbers = np.concatenate([numbers, numbers * 0])
  segments = masks.segments(jnp.asarray(numbers, jnp.int32))
  return {
    "mask": segments & masks.padding(jnp.array([LENGTH, 300])),
    "score_mods": scores.alibi(arrays["h"], symmetric=True),
  }


def _sigmoid(_):
  return {"normalizer": normalizers.sigmoid(), "mask": masks.causal()}


MORE = {
  "h": (HEADS,),
  "bq": (BATCH, LENGTH),
  "bk": (BATCH, LENGTH),
  "bias": (HEADS, LENGTH, LENGTH),
  "sink": (HEADS,),
}
CASES = {
  "plain": (lambda _: {}, ()),
  "causal": (_causal, ()),
  "window": (_window, MORE),
  "segments": (_segments, ("h",)),
  "sigmoid": (_sigmoid, ()),
}


def _run(case, implementation, arrays):
  make, names = CASES[case]
  out_bar = arrays["out_bar"]
  arrays = {name: arrays[name] for name in ("q", "k", "v", *names)}

  def attend(**arrays):
    return attention.dot_product_attention(
      arrays["q"],
      arrays["k"],
      arrays["v"],
      implementation=implementation,
      **make(arrays),
    )

  return kernel_runs.with_gradients(attend)(arrays, out_bar)


@pytest.mark.parametrize(
  ("case", "implementation", "way"),
  [
    ("plain", "tpu_interpret", "ring"),
    ("causal", "tpu_interpret", "ring"),
    ("causal", "gpu_interpret", "gathered"),
    ("window", "tpu_interpret", "gathered"),
    ("window", "tpu_interpret", "ring"),
    ("window", "gpu_interpret", "ring"),
    ("segments", "tpu_interpret", "ring"),
    ("sigmoid", "tpu_interpret", "gathered"),
    ("sigmoid", "gpu_interpret", "ring"),
  ],
)
def test_values_and_gradients(case, implementation, way, monkeypatch):
  if way == "ring":
    monkeypatch.setattr(flash_sequence, "GATHERED_BYTES", 0)
  arrays = _arrays(**MORE)
  expected = _run(case, "xla", arrays)
  with jax.set_mesh(mesh_of(sequence=4)):
    actual = _run(case, implementation, arrays)
  kernel_runs.assert_close(actual, expected, 1e-4)


@pytest.mark.parametrize("way", ["gathered", "ring"])
def test_bfloat16_and_other_axes(way, monkeypatch):
  if way == "ring":
    monkeypatch.setattr(flash_sequence, "GATHERED_BYTES", 0)
  arrays = _arrays(jnp.bfloat16)
  expected = _run("causal", "xla", kernel_runs.in_float32(arrays))
  with jax.set_mesh(mesh_of(sequence=2, model=2)):
    actual = _run("causal", "tpu_interpret", arrays)
  assert actual["out"].dtype == jnp.bfloat16
  kernel_runs.assert_close(actual, expected, 2e-2)


@pytest.fixture
def said(monkeypatch):
  said = []
  monkeypatch.setattr(
    dispatch.logging, "warning", lambda text, *args: said.append(text % args)
  )
  dispatch._say_whole.cache_clear()
  yield said
  dispatch._say_whole.cache_clear()


def test_what_is_not_split_is_said_once_and_computed_whole(said):
  arrays = {name: _arrays()[name][:1, :100, :1] for name in "qkv"}

  def attend():
    return attention.dot_product_attention(
      **arrays, implementation="tpu_interpret"
    )

  expected = attend()
  with jax.set_mesh(mesh_of(sequence=4)):
    for _ in range(2):
      np.testing.assert_allclose(attend(), expected, rtol=1e-5, atol=1e-6)
      # As windows are, which know nothing of parts.
      dispatch.per_device(lambda x: x, [arrays["q"]], ["bnhd"], "bnhd")
  assert len(said) == 2
  assert "sequence=4: q has length 100, and 4 parts in whole tiles" in said[0]
  assert "its kernel needs all tokens at once" in said[1]


LINEAR = {
  "all": (lambda _: {}, ()),
  "lengths": (
    lambda x: {
      "lengths": jnp.array([LENGTH, 150]),
      "key_gate": x["key_gate"],
      "normalizer": linear_normalizers.subtraction(),
    },
    ("key_gate",),
  ),
  "causal": (
    lambda x: {
      "causal": True,
      "lengths": jnp.array([LENGTH, 150]),
      "value_gate": x["value_gate"],
      # So much that the number of keys seen matters.
      "normalizer": linear_normalizers.division(0.1),
    },
    ("value_gate",),
  ),
  # What no kernel has.
  "decay": (
    lambda x: {
      "causal": True,
      "decay": -jnp.abs(x["decay"]),
      "normalizer": linear_normalizers.identity(),
    },
    ("decay",),
  ),
  "delta": (
    lambda x: {
      "causal": True,
      "write_strength": jax.nn.sigmoid(x["key_gate"]),
      "normalizer": linear_normalizers.identity(),
      "feature_map": features.softmax,
    },
    ("key_gate",),
  ),
}
GATES = {
  "key_gate": (BATCH, LENGTH, HEADS),
  "value_gate": (1, LENGTH, HEADS),
  "decay": (BATCH, LENGTH, HEADS, DIM),
}


def _run_linear(case, implementation, arrays):
  make, names = LINEAR[case]
  out_bar = arrays["out_bar"]
  arrays = {name: arrays[name] for name in ("q", "k", "v", *names)}

  def attend(**arrays):
    q, k, v = (arrays[name] for name in "qkv")
    return attention.linear_attention(
      q, k, v, implementation=implementation, **make(arrays)
    )

  return kernel_runs.with_gradients(attend)(arrays, out_bar)


@pytest.mark.parametrize(
  ("case", "implementation"),
  [
    ("all", "xla"),
    ("all", "gpu_interpret"),
    ("lengths", "tpu_interpret"),
    ("lengths", "gpu_interpret"),
    ("causal", "xla"),
    ("causal", "tpu_interpret"),
    ("causal", "gpu_interpret"),
    ("decay", "xla"),
    ("delta", "xla"),
  ],
)
def test_linear_attention(case, implementation, said):
  arrays = _arrays(**GATES)
  expected = _run_linear(case, "xla", arrays)
  with jax.set_mesh(mesh_of(sequence=4)):
    actual = _run_linear(case, implementation, arrays)
  kernel_runs.assert_close(actual, expected, 1e-5)
  assert [text for text in said if "sequence" in text] == [
    text for text in said if case == "delta" and "write_strength" in text
  ]
  assert (case == "delta") == bool(said)
