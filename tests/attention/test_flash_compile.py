"""The flash kernel compiles for TPUs at real sizes, without a score matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, normalizers, scores

# Mosaic takes its time over tiles of 512 x 512 scores, in three kernels each.
pytestmark = [pytest.mark.compile, pytest.mark.slow]
pytest.importorskip("libtpu")

from tools import compile_only  # noqa: E402, it needs libtpu.


def array(*shape, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(shape, dtype)


# Shapes (batch, length, heads, k_heads, v_heads, dim), further arrays, slots.
CASES = {
  "2k plain": ((1, 2048, 8, 8, 8, 128), (), dict),
  "2k odd length, grouped heads": (
    (2, 2000, 32, 4, 16, 64),
    (array(2, dtype=jnp.int32), array(2, 2000, dtype=jnp.int32)),
    lambda lengths, places: {
      "mask": masks.padding(lengths)
      & masks.positions(places, places, lengths)
      & masks.causal(lengths)
    },
  ),
  "2k bias": (
    (2, 2048, 12, 12, 12, 64),
    (array(1, 12, 2048, 2048, dtype=jnp.float32),),
    lambda bias: {"bias": bias},
  ),
  "16k factored bias": (
    (1, 16384, 4, 4, 4, 32),
    (
      array(1, 16384, 4, 8, dtype=jnp.float32),
      array(1, 16384, 4, 8, dtype=jnp.float32),
    ),
    lambda a, b: {"score_mods": scores.factored_bias(a, b)},
  ),
  "8k sliding window, alibi, cap, sink": (
    (1, 8192, 16, 4, 4, 128),
    (array(16, dtype=jnp.float32), array(16, dtype=jnp.float32)),
    lambda slopes, sink: {
      "mask": masks.sliding_window(1024),
      "score_mods": [scores.alibi(slopes), scores.soft_cap(30.0)],
      "normalizer": normalizers.softmax_with_sink(sink),
    },
  ),
  "32k causal": (
    (1, 32768, 8, 8, 8, 128),
    (),
    lambda: {"mask": masks.causal()},
  ),
  "radial": (
    (1, 16 * 512, 8, 8, 8, 128),
    (),
    lambda: {"mask": masks.radial_blocks(16, 512, decay=0.5)},
  ),
  "float32 reweighted softplus": (
    (1, 2048, 4, 4, 4, 64),
    (),
    lambda: {
      "mask": masks.causal(),
      "normalizer": normalizers.reweighted_softplus(15.0),
    },
  ),
}
# A length that no tile divides, and a list of tiles that fills much of the
# scalar memory.
ODD, LONG = "2k odd length, grouped heads", "32k causal"
CHIPS = [
  *(("v5e", name) for name in CASES),
  ("v4", ODD),
  ("v5p", LONG),
  ("v6e", ODD),
  ("tpu7x", LONG),
]


@pytest.mark.parametrize(("chip", "name"), CHIPS)
def test_compiles_forward_and_backward(chip, name):
  (batch, length, heads, k_heads, v_heads, dim), arrays, slots = CASES[name]
  dtype = jnp.float32 if name.startswith("float32") else jnp.bfloat16
  q, k, v = (
    array(batch, length, n, dim, dtype=dtype) for n in (heads, k_heads, v_heads)
  )

  def loss(floating, others):
    q, k, v, *floating = floating
    out = attention.dot_product_attention(
      q, k, v, implementation="tpu", **slots(*floating, *others)
    )
    return jnp.sum(out.astype(jnp.float32))

  floating = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
  others = [x for x in arrays if x not in floating]
  compiled = compile_only.compile_for(
    chip, jax.value_and_grad(loss), [q, k, v, *floating], others
  )
  memory = compiled.memory_analysis()
  # TPUs pad the last axis to 128, so that arrays may be larger than they look;
  # gradients and residuals come on top. One score matrix would be far more.
  padded = 4 * batch * length * heads * max(dim, 128) * q.dtype.itemsize
  score_matrix = batch * heads * length * length * 4
  assert memory.temp_size_in_bytes <= 3 * padded
  if length > 4096:
    assert memory.temp_size_in_bytes < score_matrix / 8


@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_a_decode_step_moves_little_but_the_cache(chip):
  """Caches of 32k tokens with 8 heads, read once for 32 heads of queries."""
  cache, token = array(8, 32768, 8, 128), array(8, 1, 32, 128)
  places = array(8, 1, dtype=jnp.int32), array(8, 32768, dtype=jnp.int32)

  def step(q, k, v, *places):
    return attention.dot_product_attention(
      q, k, v, mask=masks.positions(*places, 4096), implementation="tpu"
    )

  compiled = compile_only.compile_for(chip, step, token, cache, cache, *places)
  least = compiled.memory_analysis().argument_size_in_bytes
  assert compiled.memory_analysis().temp_size_in_bytes < least / 100
  assert compiled.cost_analysis()["bytes accessed"] < 1.05 * least


def test_a_pyramid_compiles_forward_and_backward():
  """With the paper's blocks, whose means of eight a TPU has no tile for."""
  length, block = 8192, 128
  levels = np.random.default_rng(0).choice([0, 1, 2, 4, 8], (1, 8, 64, 64))
  levels[..., 0] = 1

  def loss(qkv):
    out = attention.pyramid_attention(
      *qkv, levels, block_q=block, block_k=block, implementation="tpu"
    )
    return jnp.sum(out.astype(jnp.float32))

  compiled = compile_only.compile_for(
    "v5e", jax.value_and_grad(loss), [array(1, length, 8, 128)] * 3
  )
  # Keys and values of all levels, and their gradients; of scores there would be
  # as many as of these keys for each query.
  assert compiled.memory_analysis().temp_size_in_bytes < 8 * length**2
