"""Layers with our kernel of feed-forward branches on paper: no TPU is needed.

  python -m benchmarks.feed_forward_static [--only=lina]

Of each case it compiles the training pass, forward and backward, in bfloat16
for a v5e, by XLA alone and with our kernels where "auto" takes them:

- MaxViT-B's transformer layers without their attention, 16 images: a
  normalisation and a residual, which are XLA's in both, and the branch;
- LINA's blocks at 256 pixels, 8 images, whole, and a block of its flow head
  with 4 draws of noise.

Layouts of arguments are left to the compiler, as they are within a model. It
prints XLA's `estimated_cycles`, those of our kernels (`tools.kernel_cycles`:
what runs at the first step only counts at each), or the time of what their
grids fetch where that is more, and the bytes that XLA counts, kernels' arrays
once. Nothing here was run.
"""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental.layout import Format, Layout

from benchmarks import dumping
from models import flow_head, lina_attention, lina_layers, maxvit_blocks
from tools import compile_only, kernel_cycles, topologies

_ONLY = flags.DEFINE_string("only", "", "Cases whose name has this in it.")
_CHIP = topologies.CHIPS["TPU v5 lite"]
_DTYPES = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
# Side of the image in tokens, channels.
_STAGES = ((56, 96), (28, 192), (14, 384), (7, 768))
# Tokens: 64 that condition and all 256; 64 and at most 77 that are visible; a
# class and 64 queries.
_LINA = {"decoder": 64 + 256, "encoder": 64 + 77, "connector": 65}


class Case(NamedTuple):
  """A layer and its arguments.

  Attributes:
    create: makes the layer, given an implementation of its kernels.
    inputs: shapes, in bfloat16.
    arrays: arguments behind them that get no gradient.
    static: arguments behind those.
  """

  create: Callable[[str], nn.Module]
  inputs: tuple[tuple[int, ...], ...]
  arrays: tuple[jax.ShapeDtypeStruct, ...] = ()
  static: tuple[bool, ...] = ()


class _NoMixer(nn.Module):
  """In the place of attention."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x


def _maxvit(implementation: str) -> nn.Module:
  return maxvit_blocks.TransformerLayer(
    lambda name: _NoMixer(name=name),
    expansion=4,
    stochastic_depth_rate=0.3,
    feed_forward_implementation=implementation,
    **_DTYPES,
  )


def _lina(implementation: str, **options) -> nn.Module:
  attention = functools.partial(
    lina_attention.LinaAttention,
    12,
    implementation=implementation,
    **options,
    **_DTYPES,
  )
  return lina_layers.Block(attention, implementation, **_DTYPES)


def cases() -> dict[str, Case]:
  """Returns all cases by name."""
  found = {
    f"maxvit stage {stage}": Case(
      _maxvit, ((16, side, side, channels),), static=(True,)
    )
    for stage, (side, channels) in enumerate(_STAGES, start=1)
  }
  found["lina flow"] = Case(
    lambda implementation: flow_head.FlowBlock(implementation, **_DTYPES),
    ((8, 4, 256, 768),) * 2,
  )
  for name, tokens in _LINA.items():
    decodes = name == "decoder"
    options = {"gate": "key_value", "grid": (16, 16)} if decodes else {}
    lengths = jax.ShapeDtypeStruct((8,), jnp.int32)
    found[f"lina {name}"] = Case(
      functools.partial(_lina, **options),
      ((8, tokens, 768),),
      (lengths,) if name == "encoder" else (),
    )
  return found


def main(argv: Sequence[str]) -> None:
  """Prints a line for each case and implementation."""
  del argv
  chosen = [name for name in cases() if _ONLY.value in name]
  if not chosen:
    raise SystemExit(f"only={_ONLY.value!r} is in none of {', '.join(cases())}")
  # What comes from a cache is not dumped.
  jax.config.update("jax_enable_compilation_cache", False)
  with dumping.two_processes() as (folder, others):
    for name in chosen:
      for implementation in ("xla", "auto"):
        cycles, moved = others.submit(around, name, implementation).result()
        found = kernels(name, implementation, folder)
        total = cycles + sum(found.values())
        named = "".join(f" + {n:,.0f} {kernel}" for kernel, n in found.items())
        print(
          f"{name} {implementation}: {cycles:,}{named} cycles, "
          f"{1e6 * total / _CHIP.clock:,.0f} us, {moved / 1e6:,.0f} MB",
          flush=True,
        )


def around(name: str, implementation: str) -> tuple[int, float]:
  """Returns the cycles of what XLA does, and the bytes of everything."""
  train, arguments = _layer(name, implementation)
  sharding = compile_only.device_sharding(_CHIP.name)
  anyhow = Format(Layout.AUTO, sharding)
  with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
    jitted = jax.jit(train, in_shardings=anyhow, out_shardings=anyhow)
    compiled = jitted.lower(*arguments).compile()
  entry = compiled.as_text().split("\nENTRY ")[1]
  cycles = map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry))
  return sum(cycles), compiled.cost_analysis()["bytes accessed"]


def kernels(name: str, implementation: str, folder: Path) -> dict[str, float]:
  """Returns the cycles of our kernels, by name."""
  train, arguments = _layer(name, implementation)
  mesh = compile_only.device_sharding(_CHIP.name).mesh.abstract_mesh
  with jax.sharding.use_abstract_mesh(mesh):
    jaxpr = jax.make_jaxpr(train)(*arguments).jaxpr
  found: dict[str, float] = {}
  for call in kernel_cycles.calls(jaxpr):
    dumping.clear(folder)
    inputs = [variable.aval for variable in call.equation.invars]
    compile_only.compile_for(_CHIP.name, call.function, *inputs)
    cycles = max(
      kernel_cycles.cycles(folder, call),
      call.fetched * _CHIP.clock / _CHIP.bandwidth,
    )
    found[call.name] = found.get(call.name, 0) + call.count * cycles
  return found


def _layer(name, implementation):
  """Returns the passes of a layer, and its arguments."""
  case = cases()[name]
  layer = case.create(implementation)
  inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in case.inputs]
  arrays = case.arrays

  def apply(variables, inputs, arrays):
    rngs = {"dropout": jax.random.key(0)}
    return layer.apply(variables, *inputs, *arrays, *case.static, rngs=rngs)

  def train(variables, inputs, arrays, out_bar):
    run = functools.partial(apply, arrays=arrays)
    out, pull = jax.vjp(run, variables, inputs)
    return out, pull(out_bar)

  variables = jax.eval_shape(
    lambda: layer.init(
      {"params": jax.random.key(0), "dropout": jax.random.key(0)},
      *(jnp.zeros(x.shape, x.dtype) for x in (*inputs, *arrays)),
      *case.static,
    )
  )
  out = jax.eval_shape(apply, variables, inputs, arrays)
  return train, (variables, inputs, arrays, out)


if __name__ == "__main__":
  app.run(main)
