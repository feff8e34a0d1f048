"""What is of a wrong type is refused by name, whatever the implementation.

jaxtyping would refuse many of these before the functions see them, and users do
not have it: here it is off.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import (
  features,
  finishes,
  linear_normalizers,
  masks,
  normalizers,
  permutations,
  scales,
  scores,
)

F = jnp.ones((1, 4, 2, 4))
WHOLE = F.astype(jnp.int32)
HALF = F.astype(jnp.bfloat16)
IMAGE = jnp.ones((1, 4, 4, 2, 4))
INTS = jnp.ones((4, 4), jnp.int32)
TABLE = jnp.ones((2, 3, 3))


pytestmark = pytest.mark.usefixtures("unchecked")


def dot(q=F, k=F, v=F, **options):
  return lambda how: attention.dot_product_attention(
    q, k, v, implementation=how, **options
  )


def linear(q=F, k=F, v=F, **options):
  return lambda how: attention.linear_attention(
    q, k, v, implementation=how, **options
  )


def flow(q=F, k=F, v=F, **options):
  return lambda how: attention.flow_attention(
    q, k, v, implementation=how, **options
  )


def block(q=IMAGE, k=IMAGE, v=IMAGE, **options):
  options = {"window_size": 2, **options}
  return lambda how: attention.block_attention(
    q, k, v, implementation=how, **options
  )


def halo(q=IMAGE, k=IMAGE, v=IMAGE, **options):
  options = {"block_size": 2, "halo_size": 1, **options}
  return lambda how: attention.halo_attention(
    q, k, v, implementation=how, **options
  )


# Calls that depend on the implementation, and what they say.
CALLS = [
  (dot(q=WHOLE), "q is an array of int32, of shape .* floating point"),
  (dot(q=F > 0), "q is an array of bool"),
  (dot(v=WHOLE), "v is an array of int32"),
  (dot(k=HALF), "k is bfloat16 and q is float32; both must be of one dtype"),
  (dot(k=[[1.0]]), r"k is \[\[1.0\]\]; it must be an array of floating"),
  (dot(bias=INTS), "bias is an array of int32"),
  (dot(bias=INTS > 0), "bias is an array of bool"),
  (dot(scale="dim"), "scale is 'dim'; it must be a number"),
  (dot(scale=True), "scale is True"),
  (dot(scale=INTS[0]), "scale is an array of int32"),
  (dot(mask=INTS > 0), r"mask is an array of bool.* dense\(array\)"),
  (dot(mask=True), "mask is True"),
  (dot(mask=masks.function(lambda b, h, i, j: i - j)), "gives int32; it must"),
  (
    dot(mask=masks.causal() & masks.function(lambda b, h, i, j: (i < j) * 1.0)),
    "Function, gives float32; it must give booleans",
  ),
  (dot(score_mods=lambda s, *place: s), "score_mods has <function"),
  (
    dot(score_mods=scores.function(lambda s, b, h, i, j: s > 0)),
    "makes bool of a score",
  ),
  (dot(normalizer="softmax"), "normalizer is 'softmax'"),
  (
    dot(normalizer=linear_normalizers.division()),
    "attention.normalizers makes",
  ),
  (dot(finish="gate"), "finish is 'g'|finish is 'gate'"),
  (dot(return_log_sum_exp=1), "return_log_sum_exp is 1; it must be True or"),
  (dot(return_weights="no"), "return_weights is 'no'"),
  (linear(q=WHOLE), "q is an array of int32"),
  (linear(v=HALF), "v is bfloat16 and q is float32"),
  (linear(normalizer="division"), "normalizer is 'division'"),
  (linear(normalizer=normalizers.softmax()), "normalizer is Softmax"),
  (linear(causal="False"), "causal is 'False'; it must be True or False"),
  (linear(causal=jnp.array(True)), "causal is an array of bool"),
  (linear(return_state=None), "return_state is None"),
  (linear(lengths=jnp.array([3.5])), "lengths is an array of float32"),
  (linear(lengths=jnp.array([True])), "lengths is an array of bool"),
  (linear(lengths=jnp.array([3, 3])), r"lengths has shape \(2,\)"),
  (linear(lengths=[3]), r"lengths is \[3\]; it must be an array of integers"),
  (linear(key_gate=F[..., 0] > 0), "key_gate is an array of bool"),
  (linear(key_gate=F[:, :3, :, 0]), r"key_gate has shape \(1, 3, 2\)"),
  (linear(value_gate=WHOLE[..., 0]), "value_gate is an array of int32"),
  (linear(causal=True, decay=-WHOLE[..., 0]), "decay is an array of int32"),
  (linear(causal=True, decay=-0.1), "decay is -0.1; it must be an array"),
  (linear(state=(F, F, F)), r"state is \("),
  (linear(feature_map="relu"), "feature_map is 'relu'"),
  (linear(chunk_size=2.0), "chunk_size is 2.0; it must be a whole number"),
  (flow(q=WHOLE), "q is an array of int32"),
  (flow(k=HALF), "k is bfloat16"),
  (flow(causal=1), "causal is 1"),
  (flow(clip=True), "clip is True"),
  (flow(epsilon="small"), "epsilon is 'small'"),
  (flow(q_lengths=jnp.array([2.0])), "q_lengths is an array of float32"),
  (flow(kv_lengths=jnp.array([2.0])), "kv_lengths is an array of float32"),
  (block(q=IMAGE > 0), "q is an array of bool"),
  (block(v=IMAGE.astype(jnp.bfloat16)), "v is bfloat16"),
  (block(window_size=2.0), "window_size is 2.0"),
  (block(scale="1"), "scale is '1'"),
  (block(bias=jnp.ones((2, 4, 4), bool)), "bias is an array of bool"),
  (halo(k=IMAGE.astype(int)), "k is an array of int32"),
  (halo(v=IMAGE.astype(jnp.bfloat16)), "v is bfloat16"),
  (halo(halo_size=True), "halo_size is True"),
  (halo(bias=INTS), "bias is an array of int32"),
  (halo(bias=jnp.ones((2, 4, 9))), r"bias has shape \(2, 4, 9\); .* 16 keys"),
  (halo(stride=1.0), "stride is 1.0"),
  (halo(scale="1"), "scale is '1'"),
  (halo(mask_padding=0), "mask_padding is 0"),
  (halo(scale_positions="yes"), "scale_positions is 'yes'"),
  (
    halo(relative_height=jnp.ones((7, 4), int)),
    "relative_height is an array of int32",
  ),
]
# Calls that make what goes into these, and the other functions.
MAKERS = [
  (lambda: masks.dense(INTS), "array is an array of int32.*scores.bias"),
  (lambda: masks.dense(INTS * 1.0), "array is an array of float32"),
  (lambda: masks.dense([[True]]), r"array is \[\[True\]\]"),
  (lambda: masks.blocks(np.eye(2), 2), "table is an array of float64"),
  (lambda: masks.blocks(np.eye(2) > 0, 2.0), "block_q is 2.0"),
  (lambda: masks.padding(jnp.array([2.5])), "lengths is an array of float32"),
  (lambda: masks.padding(jnp.array(2)), r"lengths has shape \(\)"),
  (lambda: masks.prefix(2.5), "length is 2.5"),
  (lambda: masks.prefix(jnp.array([1.0])), "length is an array of float32"),
  (lambda: masks.segments(INTS * 1.0), "q_segments is an array of float32"),
  (lambda: masks.segments(INTS, INTS > 0), "kv_segments is an array of bool"),
  (lambda: masks.causal(jnp.array(1.0)), "offset is an array of float32"),
  (lambda: masks.causal(INTS), r"offset has shape \(\d, \d\)"),
  (lambda: masks.causal(True), "offset is True"),
  (lambda: masks.sliding_window(1.5), "before is 1.5"),
  (lambda: masks.positions(INTS, INTS[0]), r"kv_positions has shape \(\d,\)"),
  (lambda: masks.positions(INTS > 0, INTS), "q_positions is an array of bool"),
  (lambda: masks.positions(INTS, INTS, after=-1), "after is -1"),
  (lambda: masks.function(INTS), "visible is Array"),
  (lambda: masks.causal() & INTS, "what follows & is an array of int32"),
  (lambda: masks.causal() | True, r"what follows \| is True"),
  (lambda: masks.inward_window((4, 4), (1.0, 1)), "radius is 1.0"),
  (lambda: masks.radial_tokens(2.0, 4), "frames is 2.0"),
  (lambda: masks.radial_blocks(2, 4, sink=1), "sink is 1"),
  (lambda: masks.inward_window(4, (1,)), "shape is 4; it must be a tuple"),
  (lambda: masks.inward_window((4, 4), 1), r"radius is 1; a grid of \(4, 4\)"),
  (lambda: masks.inward_window((4, 0), (1, 1)), "a side of shape is 0"),
  (lambda: masks.radial_blocks(2, 4, decay=np.nan), "decay is nan"),
  (lambda: masks.share_window(8, True), "keep is True"),
  (lambda: masks.frame_window(2, 8, np.inf), "keep is inf; .* finite"),
  (
    lambda: masks.scale_dit_tokens(0, (8, 8), (2, 0), window=4),
    r"low is \(2, 0\)",
  ),
  (
    lambda: masks.scale_dit_blocks(0, 8, (2, 2), window=4),
    "high is 8; it must be a tuple",
  ),
  (lambda: permutations.windows(4, (2,)), "shape is 4; it must be a tuple"),
  (lambda: permutations.windows((4, 4), 2), "a window is 2; it must be a tup"),
  (lambda: permutations.gilbert(8), "shape is 8; it must be a tuple"),
  (lambda: permutations.joined(3, -1), "a number of tokens is -1"),
  (lambda: permutations.joined(2.0), "a number of tokens is 2.0"),
  (lambda: permutations.joined([1, 1]), "each number below its length once"),
  (lambda: scores.bias(INTS), "array is an array of int32"),
  (lambda: scores.alibi(INTS[0]), "slopes is an array of int32"),
  (lambda: scores.alibi(INTS[0] * 1.0, symmetric=1), "symmetric is 1"),
  (lambda: scores.alibi_slopes(2.0), "heads is 2.0"),
  (lambda: scores.factored_bias(F, WHOLE), "k_factor is an array of int32"),
  (lambda: scores.soft_cap("50"), "cap is '50'"),
  (lambda: scores.soft_cap(np.inf), "cap is inf; it must be a number, finite"),
  (lambda: scores.rank_for_energy(TABLE, 1.5), "energy is 1.5; .* a share"),
  (lambda: scores.rank_for_energy(TABLE, 0), "energy is 0; .* above 0"),
  (lambda: scores.function("f"), "f is 'f'"),
  (
    lambda: scores.relative_positions(jnp.ones((2, 3), int), 4, 4),
    "table is an array of int32",
  ),
  (lambda: scores.svd_factors(TABLE, 2.0), "rank is 2.0"),
  (lambda: attention.relative_position_bias(TABLE > 0), "table is an array of"),
  (lambda: attention.resize_relative_table(TABLE, 2.0), "window_size is 2.0"),
  (lambda: attention.block_partition(IMAGE, 2.0), "window_size is 2.0"),
  (lambda: normalizers.softmax_with_sink(INTS[0]), "sink is an array of int32"),
  (lambda: normalizers.softplus("1e-8"), "epsilon is '1e-8'"),
  (lambda: normalizers.softplus(0.0), "epsilon is 0.0; it must be above 0"),
  (lambda: normalizers.reweighted_softplus("3"), "power is '3'"),
  (
    lambda: normalizers.reweighted_softplus(3.0, free_rows=3.0),
    "free_rows is 3.0",
  ),
  (
    lambda: normalizers.affine(WHOLE[..., 0], F[0, 0, 0]),
    "alpha is an array of int32",
  ),
  (lambda: linear_normalizers.division("1"), "epsilon is '1'"),
  (lambda: linear_normalizers.division(-1.0), "epsilon is -1.0"),
  (lambda: linear_normalizers.division(per_key=1), "per_key is 1"),
  (lambda: linear_normalizers.subtraction("1"), "scale is '1'"),
  (lambda: finishes.gate(F > 0), "logits is an array of bool"),
  (lambda: finishes.value_sum(WHOLE), "weight is an array of int32"),
  (lambda: scales.entropy(8.0, 4, 4), "tokens is 8.0"),
  (lambda: scales.log_length(INTS > 0, 4), "visible is an array of bool"),
  (lambda: features.taylor(WHOLE), "x is an array of int32"),
  (
    lambda: attention.apply_attention_weights(jnp.ones((1, 2, 4, 4)), WHOLE),
    "v is an array of int32",
  ),
  (
    lambda: attention.apply_halo_attention_weights(
      jnp.ones((1, 2, 2, 2, 4, 16), bool), IMAGE, block_size=2, halo_size=1
    ),
    "weights is an array of bool",
  ),
]


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
@pytest.mark.parametrize(("call", "says"), CALLS, ids=[m for _, m in CALLS])
def test_a_call(call, says, implementation):
  with pytest.raises(ValueError, match=says):
    # Nothing is computed, not even compiled, before the error.
    jax.eval_shape(lambda: call(implementation))


@pytest.mark.parametrize(("make", "says"), MAKERS, ids=[m for _, m in MAKERS])
def test_a_maker(make, says):
  with pytest.raises(ValueError, match=says):
    make()
