"""MaxViT-B's feed-forward branches on paper, by stage: no TPU is needed.

  python -m benchmarks.feed_forward_static

For each stage, 16 images in bfloat16, it compiles a transformer layer without
its attention for a v5e, forward and backward, layers one by one and with
`models.feed_forward_tpu`. A layer is a normalisation and a residual, which are
XLA's in both, and the branch. Layouts of arguments are left to the compiler, as
they are within a model. It prints XLA's `estimated_cycles`, the bundles of our
kernels (`tools.kernel_cycles`: what runs at the first step only counts at each)
and the bytes that XLA counts, kernels' arrays once. Nothing here was run.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app
from jax.experimental.layout import Format, Layout

from benchmarks import dumping
from models import maxvit_blocks
from tools import compile_only, kernel_cycles, topologies

_CHIP = topologies.CHIPS["TPU v5 lite"]
# Side of the image in tokens, channels.
_STAGES = ((56, 96), (28, 192), (14, 384), (7, 768))


class _NoMixer(nn.Module):
  """In the place of attention."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x


def main(argv: Sequence[str]) -> None:
  """Prints a line for each stage and implementation."""
  del argv
  # What comes from a cache is not dumped.
  jax.config.update("jax_enable_compilation_cache", False)
  with dumping.two_processes() as (folder, others):
    for stage, (side, channels) in enumerate(_STAGES, start=1):
      for implementation in ("xla", "auto"):
        arguments = (side, channels, implementation)
        cycles, moved = others.submit(around, *arguments).result()
        kernels = bundles(*arguments, folder)
        total = cycles + sum(kernels.values())
        named = "".join(f" + {n:,.0f} {name}" for name, n in kernels.items())
        print(
          f"stage {stage} {implementation}: {cycles:,}{named} cycles, "
          f"{1e6 * total / _CHIP.clock:,.0f} us, {moved / 1e6:,.0f} MB",
          flush=True,
        )


def around(side: int, channels: int, implementation: str) -> tuple[int, float]:
  """Returns the cycles of what XLA does, and the bytes of everything."""
  train, arguments = _layer(side, channels, implementation)
  sharding = compile_only.device_sharding(_CHIP.name)
  anyhow = Format(Layout.AUTO, sharding)
  with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
    jitted = jax.jit(train, in_shardings=anyhow, out_shardings=anyhow)
    compiled = jitted.lower(*arguments).compile()
  entry = compiled.as_text().split("\nENTRY ")[1]
  cycles = map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry))
  return sum(cycles), compiled.cost_analysis()["bytes accessed"]


def bundles(
  side: int, channels: int, implementation: str, folder: Path
) -> dict[str, float]:
  """Returns the bundles of our kernels, by name."""
  train, arguments = _layer(side, channels, implementation)
  mesh = compile_only.device_sharding(_CHIP.name).mesh.abstract_mesh
  with jax.sharding.use_abstract_mesh(mesh):
    jaxpr = jax.make_jaxpr(train)(*arguments).jaxpr
  found = {}
  for call in kernel_cycles.calls(jaxpr):
    dumping.clear(folder)
    inputs = [variable.aval for variable in call.equation.invars]
    compile_only.compile_for(_CHIP.name, call.function, *inputs)
    found[call.name] = kernel_cycles.cycles(folder, call)
  return found


def _layer(side, channels, implementation):
  """Returns the passes of a layer, and its arguments."""
  layer = maxvit_blocks.TransformerLayer(
    lambda name: _NoMixer(name=name),
    expansion=4,
    stochastic_depth_rate=0.3,
    feed_forward_implementation=implementation,
    dtype=jnp.bfloat16,
    param_dtype=jnp.float32,
  )
  x = jax.ShapeDtypeStruct((16, side, side, channels), jnp.bfloat16)
  variables = jax.eval_shape(
    lambda key: layer.init({"params": key}, jnp.zeros(x.shape, x.dtype), False),
    jax.random.key(0),
  )

  def train(variables, x, out_bar):
    def run(variables, x):
      rngs = {"dropout": jax.random.key(0)}
      return layer.apply(variables, x, True, rngs=rngs)

    out, pull = jax.vjp(run, variables, x)
    return out, pull(out_bar)

  return train, (variables, x, x)


if __name__ == "__main__":
  app.run(main)
