"""The kernels and sizes of `benchmarks.kernels_static`."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import attention
from attention import masks, scores
from benchmarks import sparse_cases
from models import lina_attention

# Tokens of a decoder layer of LINA at 256, 512, 1024 and 2048 pixels: a fifth
# of them are of the condition.
LINA_TOKENS = (320, 1280, 5120, 20480)
LINA_WIDTH, LINA_HEADS = 1536, 16


class Case(NamedTuple):
  """A kernel at a size.

  Attributes:
    name: family and variant.
    shape: what is printed of the size.
    function: function(implementation, *arguments).
    arguments: shapes and dtypes.
    flops: useful operations of the forward pass.
    busy: share of the grid's steps that find a tile to work on.
    passes: what of "forward" and "backward" there is.
    has_reference: whether XLA's reference is compiled too, which takes minutes
      where there are many scores.
    tiles: for a mask that takes seconds to make, function of a platform that
      says how busy the grid is and of how many scores; see `sparse_cases`.
    platforms: whose kernels are compiled.
  """

  name: str
  shape: str
  function: Callable
  arguments: tuple[jax.ShapeDtypeStruct, ...]
  flops: float
  busy: float = 1.0
  passes: tuple[str, ...] = ("forward", "backward")
  has_reference: bool = True
  tiles: Callable[[str], sparse_cases.Tiles] | None = None
  platforms: tuple[str, ...] = ("tpu",)


def array(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def cases() -> list[Case]:
  """Returns all cases, from those of MaxViT to those of long sequences."""
  found = []
  for kind in ("block", "grid"):
    for stage, (side, heads) in enumerate(
      ((56, 3), (28, 6), (14, 12), (7, 24)), start=1
    ):
      found.append(_window(kind, stage, side, heads))
  for stage, (side, channels, heads) in enumerate(
    ((64, 64, 4), (32, 128, 8), (16, 256, 8), (8, 512, 8)), start=1
  ):
    found.append(_halo(stage, side, channels, heads))
  found += [
    _flash("sliding window", 1, 8192, 16, 128, masks.sliding_window(1024)),
    _flash("causal", 1, 32768, 8, 128, masks.causal()),
    _biased("2k", 8, 2048, 12, 64),
    _biased("16k", 1, 16384, 4, 32),
    _factored("16k", 1, 16384, 4, 32, 8),
    _decode("32 heads on 8", 8, 32768, 32, 8, 128),
    _decode("8 heads on 8", 8, 32768, 8, 8, 128),
    _linear("bidirectional", 64, 4096, 8, 64),
    _linear("causal", 1, 32768, 8, 64, causal=True),
    # LINA's own, at 1024 pixels; with its gates in bfloat16 below.
    _linear("lina", 1, 5120, 16, 96),
    _linear("lina gated float32", 1, 5120, 16, 96, gated=True, dtype="float32"),
  ]
  for tokens in LINA_TOKENS:
    for kind in lina_attention.ATTENTIONS:
      found += [_lina(kind, tokens), _lina_layer(kind, tokens)]
  return [*found, *map(_sparse, sparse_cases.SPARSE)]


def _window(kind: str, stage: int, side: int, heads: int) -> Case:
  attend = getattr(attention, f"{kind}_attention")
  x = array(256, side, side, heads, 32)
  bias = array(heads, 49, 49, dtype=jnp.float32)

  def function(implementation, q, k, v, bias):
    return attend(
      q, k, v, window_size=7, bias=bias, implementation=implementation
    )

  flops = 4 * 256 * side**2 * 49 * heads * 32
  return Case(
    f"window {kind} stage {stage}",
    f"256x{side}x{side}x{heads}x32",
    function,
    (x, x, x, bias),
    flops,
  )


def _halo(stage: int, side: int, channels: int, heads: int) -> Case:
  dim = channels // heads
  x = array(256, side, side, heads, dim)
  table = array(27, dim, dtype=jnp.float32)

  def function(implementation, q, k, v, height, width):
    return attention.halo_attention(
      q,
      k,
      v,
      block_size=8,
      halo_size=3,
      relative_height=height,
      relative_width=width,
      implementation=implementation,
    )

  flops = 4 * 256 * side**2 * 14**2 * channels
  return Case(
    f"halo stage {stage}",
    f"256x{side}x{side}x{heads}x{dim}",
    function,
    (x, x, x, table, table),
    flops,
  )


def _flash(name, batch, length, heads, dim, mask) -> Case:
  x = array(batch, length, heads, dim)

  def function(implementation, q, k, v):
    return attention.dot_product_attention(
      q, k, v, mask=mask, implementation=implementation
    )

  # Rows of the grid are as long as the longest list of tiles.
  tiles = mask.tile_states(length, length, 512, 512)[0, 0] > 0
  longest = tiles.sum(axis=1).max()
  flops = 4 * batch * heads * length**2 * dim * float(tiles.mean())
  return Case(
    f"flash {name}",
    f"{batch}x{length}x{heads}x{dim}",
    function,
    (x,) * 3,
    flops,
    busy=float(tiles.sum() / (len(tiles) * longest)),
  )


def _sparse(name: str) -> Case:
  function, arguments = sparse_cases.call(name)
  q, k, _ = arguments
  return Case(
    f"sparse {name}",
    f"1x{q.shape[1]} on {k.shape[1]}x{q.shape[2]}x{q.shape[3]}",
    function,
    arguments,
    4 * q.shape[2] * q.shape[1] * k.shape[1] * q.shape[3],
    passes=("forward",),
    has_reference=False,
    tiles=functools.partial(sparse_cases.tiles, name),
    platforms=sparse_cases.SPARSE[name].platforms,
  )


def _biased(name, batch, length, heads, dim) -> Case:
  x = array(batch, length, heads, dim)
  bias = array(1, heads, length, length)

  def function(implementation, q, k, v, bias):
    return attention.dot_product_attention(
      q, k, v, bias=bias, implementation=implementation
    )

  return Case(
    f"flash dense bias {name}",
    f"{batch}x{length}x{heads}x{dim}",
    function,
    (x, x, x, bias),
    4 * batch * heads * length**2 * dim,
  )


def _factored(name, batch, length, heads, dim, rank) -> Case:
  x = array(batch, length, heads, dim)
  factor = array(batch, length, heads, rank, dtype=jnp.float32)

  def function(implementation, q, k, v, a, b):
    return attention.dot_product_attention(
      q,
      k,
      v,
      score_mods=scores.factored_bias(a, b),
      implementation=implementation,
    )

  return Case(
    f"flash factored bias {name}",
    f"{batch}x{length}x{heads}x{dim}, rank {rank}",
    function,
    (x, x, x, factor, factor),
    4 * batch * heads * length**2 * (dim + rank / 2),
  )


def _decode(name, batch, length, heads, k_heads, dim) -> Case:
  """A token a row of the batch against a cache that is full, by positions."""
  q = array(batch, 1, heads, dim)
  k = array(batch, length, k_heads, dim)
  places = (
    array(batch, 1, dtype=jnp.int32),
    array(batch, length, dtype=jnp.int32),
  )

  def function(implementation, q, k, v, q_positions, kv_positions):
    return attention.dot_product_attention(
      q,
      k,
      v,
      mask=masks.positions(q_positions, kv_positions),
      implementation=implementation,
    )

  return Case(
    f"flash decode {name}",
    f"{batch}x{length}x{k_heads}x{dim}",
    function,
    (q, k, k, *places),
    4 * batch * heads * length * dim,
    passes=("forward",),
  )


def _linear(
  name,
  batch,
  length,
  heads,
  dim,
  *,
  causal=False,
  gated=False,
  dtype="bfloat16",
) -> Case:
  x = array(batch, length, heads, dim, dtype=dtype)
  # Of keys and of values, learned: they belong to places, not to examples.
  gates = (array(1, length, heads, dtype=jnp.float32),) * 2 if gated else ()

  def function(implementation, q, k, v, key_gate=None, value_gate=None):
    return attention.linear_attention(
      q,
      k,
      v,
      causal=causal,
      key_gate=key_gate,
      value_gate=value_gate,
      implementation=implementation,
    )

  return Case(
    f"linear {name}",
    f"{batch}x{length}x{heads}x{dim}",
    function,
    (x, x, x, *gates),
    4 * batch * length * heads * dim**2,
  )


def _lina(kind: str, tokens: int) -> Case:
  """The attention of a decoder layer of LINA between its projections."""
  function, arguments = lina_attention_call(kind, tokens)
  dim = LINA_WIDTH // LINA_HEADS
  return Case(
    f"lina {tokens} {kind} attention",
    f"1x{tokens}x{LINA_HEADS}x{dim}",
    function,
    arguments,
    4 * tokens * (dim if kind == "linear" else tokens) * LINA_WIDTH,
    has_reference=kind == "linear",
  )


def _lina_layer(kind: str, tokens: int) -> Case:
  """The same with its projections, and with LINA's convolution if linear."""
  layer = lina_layer(kind, tokens)
  x = array(1, tokens, LINA_WIDTH)
  variables = jax.eval_shape(layer.init, jax.random.key(0), x)

  def function(implementation, variables, x):
    return layer.clone(implementation=implementation).apply(variables, x)

  alone = _lina(kind, tokens)
  return Case(
    f"lina {tokens} {kind} layer",
    f"1x{tokens}x{LINA_WIDTH}",
    function,
    (variables, x),
    alone.flops + 8 * tokens * LINA_WIDTH**2,
    has_reference=alone.has_reference,
  )


def lina_layer(
  kind: str, tokens: int, width: int = LINA_WIDTH, heads: int = LINA_HEADS
) -> lina_attention.LinaAttention:
  """Returns the attention of a decoder layer of LINA, in bfloat16.

  Args:
    kind: "linear", with gates and convolution, or "softmax", without.
    tokens: of which four fifths are those of a square image.
    width: channels of a token.
    heads: heads.
  """
  options = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
  if kind == "linear":
    side = math.isqrt(tokens * 4 // 5)
    options |= {"gate": "key_value", "grid": (side, side)}
  return lina_attention.LinaAttention(heads, kind, **options)


def lina_attention_call(
  kind: str, tokens: int, width: int = LINA_WIDTH, heads: int = LINA_HEADS
) -> tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]:
  """Returns what such a layer has between its projections, and its arguments.

  Args are those of `lina_layer`.

  Returns:
    function(implementation, *arguments), and q, k, v, with gates of keys and
    values if linear.
  """
  x = array(1, tokens, heads, width // heads)
  gate = array(1, tokens, heads, dtype=jnp.float32)

  def linear(implementation, q, k, v, *gates):
    gates = lina_attention.Gates(*gates)
    return lina_attention.mix(q, k, v, gates, implementation=implementation)

  if kind == "linear":
    return linear, (x, x, x, gate, gate)

  def softmax(implementation, q, k, v):
    return attention.dot_product_attention(
      q, k, v, implementation=implementation
    )

  return softmax, (x, x, x)
