"""Which mixers of the language model have kernels, and programs with them.

  python -m tests.models.mixer_kernels h100 "full affine" ...

compiles training steps for a chip, in a process of its own since a kernel that
is wrong for a GPU may end it, and prints a JSON object a line: the case, the
bytes of temporary memory and those of one array of all scores.
"""

import json
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend import core

from models.transformer import Transformer

LENGTH = 512
FIELDS = {
  "vocabulary_size": 64,
  "width": 64,
  "depth": 1,
  "heads": 4,
  "mlp_width": 64,
  "window": 128,
}


def of(mixer, **options):
  """Fields of a transformer with one mixer, and its options."""
  return {"mixers": (mixer,), "mixer_options": {mixer: options}}


def reweighted(power):
  return {
    "qk_norm": "unit",
    "scale_by": "log_length",
    "normalizer": "reweighted_softplus",
    "normalizer_options": {"power": power},
  }


LSSA = {
  "qk_norm": "unit",
  "scale_by": "log_length",
  "normalizer": "softplus",
}
AFFINE = {"normalizer": "affine", "normalizer_options": {"length": LENGTH}}

# Beside FIELDS. Add a line for each option that reaches attention.
FUSED = {
  "full": of("full"),
  "full, shared keys": {"kv_heads": 2} | of("full"),
  "full, gated": of("full", output_gate="elementwise"),
  "full, gated by head": of("full", output_gate="headwise"),
  "full, gate added": of(
    "full",
    output_gate="elementwise",
    gate_activation="silu",
    gate_operation="add",
  ),
  "full, shared gate": of("full", output_gate="shared"),
  "full, gated values": of(
    "full", output_gate="elementwise", gate_position="value"
  ),
  "full, fewer keys than values": of(
    "full", key_heads=1, value_heads=2, key_dim=8, value_dim=32
  ),
  "full, soft cap": of("full", attention_soft_cap=30.0),
  "full, ALiBi": {"position_encoding": "alibi"} | of("full"),
  "full, sink": of("full", normalizer="softmax_with_sink"),
  "full, sigmoid": of("full", normalizer="sigmoid"),
  "full, log length": of("full", scale_by="log_length"),
  "full, affine": of("full", **AFFINE),
  "full, affine, N visible": of("full", normalizer="affine"),
  "full, LSSA": of("full", **LSSA),
  "full, LSSAR": of("full", **reweighted(15.0)),
  "full, merged": {"heads": 1} | of("full", projections="merged"),
  "full, no projections": {"heads": 1} | of("full", projections="none"),
  "full, attention residuals": {"residual": "attention", "depth": 2}
  | of("full"),
  "full, attention residuals, scan": {
    "residual": "attention",
    "residual_block": 3,
    "scan_layers": True,
    "depth": 2,
  }
  | of("full"),
  "full, fewer heads of keys": of(
    "full", key_heads=1, value_heads=2, query_hidden=48
  ),
  "full, narrow keys and values": of("full", key_dim=8, value_dim=24),
  "sliding": of("sliding"),
  "sliding, sink, shared keys": {"kv_heads": 2}
  | of("sliding", normalizer="softmax_with_sink"),
  "sliding, affine": of("sliding", **AFFINE),
  "sliding, LSSAR": of("sliding", **reweighted(3.0)),
  "hierarchical": {"causal": False} | of("hierarchical", branchings=(8,)),
  "linear, one segment": of("linear"),
  "linear, one segment, gated": of(
    "linear", key_gate=True, value_gate=True, output_gate="headwise"
  ),
}

# What goes to the reference, on which platforms, and what is said of it. Of
# segments linear attention makes decays, which empty the memory. The mixer
# "convolution" is no attention, and in neither.
REFERENCE = {
  "linear, segments": (of("linear"), ("tpu", "gpu"), "decay is"),
  "linear, one segment, decay": (
    of("linear", decay="head"),
    ("tpu", "gpu"),
    "decay is",
  ),
  "linear, one segment, delta rule": (
    of("linear", update="delta", qk_norm="unit", feature_map="identity"),
    ("tpu", "gpu"),
    "update is|delta",
  ),
  "linear, one segment, Taylor": (
    of("linear", feature_map="taylor"),
    ("gpu",),
    "feature_map is .*taylor",
  ),
}


def model(fields, implementation, **more):
  """Returns a small transformer whose attention has that implementation."""
  return Transformer(
    **{**FIELDS, **fields}, implementation=implementation, **more
  )


def step(model, name):
  """Returns a training step to trace, and shapes of its arguments.

  Rows are packed, but for a case whose name says "one segment".
  """
  packed = "one segment" not in name
  tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tokens)

  def loss(params, collections, tokens, places):
    logits, _ = model.apply(
      {"params": params, **collections},
      tokens,
      **places,
      train=True,
      mutable=list(collections),
    )
    return jnp.sum(jnp.sin(logits))

  params = variables.pop("params")
  places = {"segments": tokens, "positions": tokens} if packed else {}
  return jax.value_and_grad(loss), (params, variables, tokens, places)


def equations(jaxpr) -> Iterator:
  """All equations of a program, but for what is in a kernel."""
  for equation in jaxpr.eqns:
    yield equation
    if equation.primitive.name != "pallas_call":
      for inner in core.jaxprs_in_params(equation.params):
        yield from equations(inner)


def kernels_and_largest(name, fields, implementation):
  """Returns how many kernels a step has, and the size of its largest array."""
  function, arguments = step(model(fields, implementation), name)
  jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
  found = list(equations(jaxpr))
  kernels = sum(e.primitive.name == "pallas_call" for e in found)
  return kernels, max(x.aval.size for e in found for x in e.outvars)


def scores(fields):
  """Returns the size of an array of all scores, [heads, length, length]."""
  return {**FIELDS, **fields}["heads"] * LENGTH**2


def main(chip, names) -> None:
  """Compiles a step of each case; prints a line for each."""
  from tools import compile_only

  platform = "tpu" if chip in compile_only.TPUS else "gpu"
  for name in names:
    fields = FUSED[name]
    function, arguments = step(
      model(fields, platform, dtype=jnp.bfloat16), name
    )
    program = compile_only.compile_for(chip, function, *arguments)
    line = {
      "case": name,
      "temp_bytes": program.memory_analysis().temp_size_in_bytes,
      "score_bytes": 4 * scores(fields),
    }
    print(json.dumps(line))


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2:])
