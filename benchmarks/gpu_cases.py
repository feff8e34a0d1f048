"""What `benchmarks.kernels_gpu` runs: shapes, our calls and JAX's own.

Shapes are those of the models and papers the kernels are for; with `tiny`, ones
that the interpreter can run.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

import attention
from attention import features, masks, scores

BF16, F32 = jnp.bfloat16, jnp.float32


@dataclasses.dataclass(frozen=True)
class Case:
  """One computation.

  Attributes:
    family: "window", "flash", "halo" or "linear".
    kernel: name within the families.
    shape: its sizes, for people and for the key of a row.
    arrays: shapes and dtypes of the arguments.
    call: function of an implementation and of the arguments.
    flops: useful floating-point operations of the forward pass.
    peers: the same in JAX, functions of the arguments.
    sizes: what PyTorch's versions need to know (`torch_peers`).
  """

  family: str
  kernel: str
  shape: str
  arrays: tuple[jax.ShapeDtypeStruct, ...]
  call: Callable
  flops: float
  peers: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
  sizes: Mapping[str, object] = dataclasses.field(default_factory=dict)

  def forward_bytes(self) -> int:
    """Bytes that any implementation moves: arguments and the result, once."""
    return _nbytes(*self.arrays, self.out())

  def backward_bytes(self) -> int:
    """The same for the backward pass, which makes the scores again."""
    return 2 * _nbytes(*self.arrays) + 2 * _nbytes(self.out())

  def out(self) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of the result."""
    return jax.eval_shape(lambda *a: self.call("xla", *a), *self.arrays)


def cases(tiny: bool) -> list[Case]:
  """Returns all cases."""
  return [*windows(tiny), *flash(tiny), *halo(tiny), *linear(tiny)]


def windows(tiny: bool) -> list[Case]:
  """The four stages of MaxViT-B at 224 pixels, batch 256."""
  stages = [(56, 3), (28, 6), (14, 12), (7, 24)]
  if tiny:
    stages = [(14, 1)]
  return [
    _window(2 if tiny else 256, size, heads, grid)
    for size, heads in stages
    for grid in (False, True)
  ]


def flash(tiny: bool) -> list[Case]:
  """Dot-product attention with each kind of modification and mask."""
  short = (1, 40, 2, 16) if tiny else (8, 2048, 12, 64)
  long = (1, 48, 2, 16) if tiny else (2, 8192, 16, 128)
  window = 8 if tiny else 1024
  heads, length = short[2], short[1]
  slopes = _shape(heads, dtype=F32)
  return [
    _flash("plain", short),
    _flash("plain", long),
    _flash("causal", short, mask=masks.causal()),
    _flash("causal", long, mask=masks.causal()),
    _flash("sliding", long, mask=masks.sliding_window(window), window=window),
    _flash(
      "dense_bias", short, scores.bias, (_shape(1, heads, length, length),)
    ),
    _flash("alibi", short, scores.alibi, (slopes,), masks.causal()),
    _flash(
      "factored_bias",
      short,
      lambda s: scores.alibi_factors(s, length, length),
      (slopes,),
    ),
    _flash("soft_cap", long, lambda: scores.soft_cap(50.0), (), masks.causal()),
  ]


def halo(tiny: bool) -> list[Case]:
  """HaloNet: blocks of 8, halo of 3, relative embeddings, batch 256."""
  batch, size, heads, dim, block, border = (
    (1, 8, 1, 16, 4, 1) if tiny else (256, 64, 4, 16, 8, 3)
  )
  image = _shape(batch, size, size, heads, dim)
  window = block + 2 * border
  table = _shape(2 * window - 1, dim)

  def call(implementation, q, k, v, height, width):
    return attention.halo_attention(
      q,
      k,
      v,
      block_size=block,
      halo_size=border,
      relative_height=height,
      relative_width=width,
      implementation=implementation,
    )

  shape = f"b{batch} {size}x{size} h{heads} d{dim} block {block} halo {border}"
  return [
    Case(
      family="halo",
      kernel="halo",
      shape=shape,
      arrays=(image, image, image, table, table),
      call=call,
      flops=4 * batch * size**2 * heads * window**2 * dim,
    )
  ]


def linear(tiny: bool) -> list[Case]:
  """Linear attention with a ReLU feature map, over all tokens and causal."""
  batch, length, heads, dim = (1, 48, 1, 16) if tiny else (64, 4096, 8, 64)
  tokens = _shape(batch, length, heads, dim)

  def make(causal):
    def call(implementation, q, k, v):
      return attention.linear_attention(
        q,
        k,
        v,
        feature_map=features.relu,
        causal=causal,
        implementation=implementation,
      )

    return Case(
      family="linear",
      kernel="linear_causal" if causal else "linear",
      shape=f"b{batch} n{length} h{heads} d{dim}",
      arrays=(tokens, tokens, tokens),
      call=call,
      flops=4 * batch * length * heads * dim**2,
    )

  return [make(False), make(True), _lina(tiny)]


def _lina(tiny: bool) -> Case:
  """A decoder layer of LINA at 1,024 pixels, one image, gates and all."""
  length, heads, dim = (40, 2, 24) if tiny else (5120, 16, 96)
  tokens = _shape(1, length, heads, dim)
  gate = _shape(1, length, heads, dtype=F32)

  def call(implementation, q, k, v, key_gate, value_gate):
    return attention.linear_attention(
      q,
      k,
      v,
      key_gate=key_gate,
      value_gate=value_gate,
      implementation=implementation,
    )

  return Case(
    family="linear",
    kernel="linear_gated",
    shape=f"b1 n{length} h{heads} d{dim}",
    arrays=(tokens, tokens, tokens, gate, gate),
    call=call,
    flops=4 * length * heads * dim**2,
  )


def _window(batch, size, heads, grid) -> Case:
  side, dim = 7, 32
  tokens = side**2
  image = _shape(batch, size, size, heads, dim)
  attend = attention.grid_attention if grid else attention.block_attention

  def call(implementation, q, k, v, bias):
    return attend(
      q, k, v, window_size=side, bias=bias, implementation=implementation
    )

  return Case(
    family="window",
    kernel="grid" if grid else "block",
    shape=f"b{batch} {size}x{size} h{heads} d{dim} window {side}",
    arrays=(image, image, image, _shape(heads, tokens, tokens, dtype=F32)),
    call=call,
    flops=4 * batch * size**2 * heads * tokens * dim,
    sizes={"window": side, "grid": grid},
  )


def _flash(kernel, sizes, mods=None, arrays=(), mask=None, window=None) -> Case:
  batch, length, heads, dim = sizes
  tokens = _shape(batch, length, heads, dim)

  def call(implementation, q, k, v, *arrays):
    return attention.dot_product_attention(
      q,
      k,
      v,
      score_mods=mods(*arrays) if mods else (),
      mask=mask,
      implementation=implementation,
    )

  def peer(implementation):
    def run(q, k, v, *arrays):
      return jax.nn.dot_product_attention(
        q,
        k,
        v,
        *arrays,
        is_causal=mask is not None,
        local_window_size=None if window is None else (window, 0),
        implementation=implementation,
      )

    return run

  has_peer = kernel in ("plain", "causal", "sliding", "dense_bias")
  return Case(
    family="flash",
    kernel=kernel,
    shape=f"b{batch} n{length} h{heads} d{dim}"
    + (f" window {window}" if window else ""),
    arrays=(tokens, tokens, tokens, *arrays),
    call=call,
    flops=4 * batch * heads * dim * _pairs(length, mask is not None, window),
    peers={f"jax.nn {name}": peer(name) for name in ("xla", "cudnn")}
    if has_peer
    else {},
    sizes={"causal": mask is not None, "window": window},
  )


def _pairs(length: int, causal: bool, window: int | None) -> int:
  """Returns how many pairs of query and key are seen."""
  if not causal:
    return length**2
  before = length if window is None else min(length, window + 1)
  return before * (before + 1) // 2 + (length - before) * before


def _shape(*sizes, dtype=BF16) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(sizes, dtype)


def _nbytes(*arrays) -> int:
  return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays)
