"""Compiles every GPU kernel for one GPU, in a process of its own.

  python -m tests.attention.gpu_kernels h100

prints a JSON object a line: the case, the bytes of its arguments and of its
temporary memory, and the kernels that are in the program.
"""

import functools
import json
import re
import sys

from tools import compile_only  # isort: skip, before JAX starts.

import jax
import jax.numpy as jnp

import attention
from attention import masks, pyramid_importance, pyramid_levels, scores
from benchmarks import sparse_cases

BF16, F32 = jnp.bfloat16, jnp.float32


def _shape(*sizes, dtype=BF16):
  return jax.ShapeDtypeStruct(sizes, dtype)


def _window(batch, size, heads, dim, window, *, grid, bias=True, dtype=BF16):
  image = _shape(batch, size, size, heads, dim, dtype=dtype)
  tokens = window**2
  table = _shape(heads, tokens, tokens, dtype=F32) if bias else None
  attend = attention.grid_attention if grid else attention.block_attention

  def function(q, k, v, bias):
    return attend(q, k, v, window_size=window, bias=bias, implementation="gpu")

  return function, (image, image, image, table)


def _flash(batch, length, heads, k_heads, dim, *, mods=None, mask=None, **more):
  dtype = more.pop("dtype", BF16)
  arrays = more.pop("arrays", ())
  q = _shape(batch, length, heads, dim, dtype=dtype)
  k = _shape(batch, length, k_heads, dim, dtype=dtype)

  def function(q, k, v, *arrays):
    return attention.dot_product_attention(
      q,
      k,
      v,
      score_mods=mods(*arrays) if mods else (),
      mask=mask,
      implementation="gpu",
    )

  return function, (q, k, k, *arrays)


def _decode(batch, length, heads, k_heads, dim, *, dtype=BF16):
  q = _shape(batch, 1, heads, dim, dtype=dtype)
  k = _shape(batch, length, k_heads, dim, dtype=dtype)
  places = (_shape(batch, n, dtype=jnp.int32) for n in (1, length))

  def function(q, k, v, *places):
    return attention.dot_product_attention(
      q, k, v, mask=masks.positions(*places, 4096), implementation="gpu"
    )

  return function, (q, k, k, *places)


def _halo(batch, size, heads, dim, block, halo):
  image = _shape(batch, size, size, heads, dim)
  table = _shape(2 * (block + 2 * halo) - 1, dim)

  def function(q, k, v, height, width):
    return attention.halo_attention(
      q,
      k,
      v,
      block_size=block,
      halo_size=halo,
      relative_height=height,
      relative_width=width,
      implementation="gpu",
    )

  return function, (image, image, image, table, table)


def _linear(batch, length, heads, dim, *, causal):
  tokens = _shape(batch, length, heads, dim)

  def function(q, k, v):
    return attention.linear_attention(
      q, k, v, causal=causal, implementation="gpu"
    )

  return function, (tokens, tokens, tokens)


def _gated_linear(batch, length, heads, dim):
  tokens = _shape(batch, length, heads, dim)
  gate = _shape(1, length, heads, dtype=F32)

  def function(q, k, v, key_gate, value_gate):
    return attention.linear_attention(
      q,
      k,
      v,
      key_gate=key_gate,
      value_gate=value_gate,
      implementation="gpu",
    )

  return function, (tokens, tokens, tokens, gate, gate)


def _pyramid(length, heads, dim, block_k):
  tokens = _shape(1, length, heads, dim)
  blocks = {"block_q": 128, "block_k": block_k}
  bounds = (0.10, 0.15, 0.15, 0.35)

  def function(q, k, v):
    look = pyramid_importance.block_importance(q, k, **blocks)
    return attention.pyramid_attention(
      q,
      k,
      v,
      pyramid_levels.levels_by_count(look, bounds),
      most=pyramid_levels.most_blocks(look.shape[-1], bounds),
      implementation="gpu",
      **blocks,
    )

  return function, (tokens, tokens, tokens)


def _sparse(name):
  function, arguments = sparse_cases.call(name)
  return functools.partial(function, "gpu"), arguments


# Stages of MaxViT-B at 224 and 384 pixels, long sequences, a step of decoding,
# HaloNet, a decoder layer of LINA at 1,024 pixels.
CASES = {
  "window stage 1": _window(256, 56, 3, 32, 7, grid=False),
  "window stage 4": _window(256, 7, 24, 32, 7, grid=False),
  "window 12 x 12": _window(64, 96, 3, 32, 12, grid=True),
  "window without bias": _window(8, 64, 4, 64, 8, grid=True, bias=False),
  "window float32": _window(8, 56, 3, 32, 7, grid=False, dtype=F32),
  "flash plain": _flash(8, 2048, 12, 12, 64),
  "flash causal": _flash(1, 8192, 16, 16, 128, mask=masks.causal()),
  "flash sliding, shared keys, soft cap": _flash(
    1,
    8192,
    16,
    4,
    128,
    mods=lambda: scores.soft_cap(50.0),
    mask=masks.sliding_window(1024),
  ),
  "flash ALiBi, 80 channels": _flash(
    8,
    2048,
    12,
    12,
    80,
    mods=scores.alibi,
    arrays=(_shape(12, dtype=F32),),
    mask=masks.causal(),
  ),
  "flash dense bias": _flash(
    8,
    2048,
    12,
    12,
    64,
    mods=scores.bias,
    arrays=(_shape(1, 12, 2048, 2048),),
  ),
  "flash factored bias": _flash(
    8,
    2048,
    12,
    12,
    64,
    mods=scores.factored_bias,
    arrays=(_shape(2048, 12, 4, dtype=F32),) * 2,
  ),
  "flash 256 channels": _flash(1, 4096, 8, 8, 256, mask=masks.causal()),
  "flash decode": _decode(8, 32768, 32, 8, 128),
  "flash decode, 80 channels, odd length": _decode(8, 30001, 8, 8, 80),
  "flash sparse, radial": _sparse("69k radial, decay 0.2"),
  "flash sparse, Scale-DiT": _sparse("70k Scale-DiT"),
  "flash sparse, FreeSwim": _sparse("171k FreeSwim"),
  "flash pyramid, blocks of 128": _pyramid(8192, 4, 128, 128),
  "flash pyramid, blocks of 32": _pyramid(8000, 4, 64, 32),
  "halo": _halo(256, 64, 4, 16, 8, 3),
  "linear": _linear(64, 4096, 8, 64, causal=False),
  "linear causal": _linear(64, 4096, 8, 64, causal=True),
  "linear LINA": _gated_linear(1, 5120, 16, 96),
  "flash float32": _flash(1, 1000, 4, 4, 64, dtype=F32),
}

# What takes most registers and shared memory of each family: of these an A100
# has less. The others differ in what Triton makes of them, not in the chip.
ON_A100 = (
  "window 12 x 12",
  "window float32",
  "flash causal",
  "flash dense bias",
  "flash factored bias",
  "flash 256 channels",
  "halo",
  "linear causal",
  "linear LINA",
)
# Whose gradients go by other kernels, or that are for sampling.
FORWARD = tuple(name for name in CASES if "decode" in name or "sparse" in name)
COMPILED = {"h100": tuple(CASES), "a100": ON_A100}


def main(chip: str) -> None:
  """Prints a line for each case."""
  for name in COMPILED[chip]:
    print(json.dumps({"case": name, **measure(name, chip)}))


def measure(name, chip) -> dict:
  """Compiles a case and its gradients to all floating arguments."""
  function, arguments = CASES[name]

  def both(out_bar, *arguments):
    out, pull = jax.vjp(function, *arguments)
    return out, pull(out_bar)

  out = jax.eval_shape(function, *arguments)
  if name in FORWARD:
    program = compile_only.compile_for(chip, function, *arguments)
  else:
    program = compile_only.compile_for(chip, both, out, *arguments)
  memory = program.memory_analysis()
  return {
    "argument_bytes": memory.argument_size_in_bytes,
    "temp_bytes": memory.temp_size_in_bytes,
    "kernels": sorted(set(re.findall(_NAMES, program.as_text()))),
  }


_NAMES = re.compile(
  r"\b[a-z]+_attention_(?:forward|backward\w*|bias_gradient|memory_\w+|make\w*|read\w*)"
)

if __name__ == "__main__":
  main(sys.argv[1])
