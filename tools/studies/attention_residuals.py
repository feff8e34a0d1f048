"""Attention over depth keeps hidden states small and gradients even.

Attention Residuals (arXiv 2603.15031) claim a lower loss, outputs that do not
grow with depth, and gradients that are alike at all depths. Measured on a deep
and narrow model of bytes, against the same model with sums: bits per byte, and
for each layer the size of the residual stream, with attention that of the sum
over the last block, and of the gradient of the layer's weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import language
from models import taps
from tools import study

DEPTH = 8
# Fields of the model; a block has 2 layers, of two branches each.
RESIDUALS = {
  "sum": {},
  "4 blocks": {"residual": "attention", "residual_block": DEPTH // 2},
  "full": {"residual": "attention"},
}
ROWS_MEASURED = 16


def rows(variant: str) -> Sequence[study.Row]:
  """The residual stream as a sum, by blocks and by single branches."""
  return [
    study.Row(name, _config(fields, variant))
    for name, fields in RESIDUALS.items()
  ]


def measure(run: study.Run) -> dict[str, list[float]]:
  """Of each layer: the stream's root mean square, and the gradient's norm.

  On the first rows that are evaluated, and of the mean loss of their tokens.
  """
  batches = run.task.room.eval_batches(
    run.config.data, batch_size=ROWS_MEASURED
  )
  batch = next(iter(batches))
  model, depth = run.task.model, run.config.model.depth
  names = [f"layer_{i}/hidden_state" for i in range(depth)]
  places = {n: batch[n] for n in ("positions", "segments") if n in batch}

  @jax.jit
  def states(variables):
    _, values = taps.read(
      model, variables, batch["tokens"], names=names, **places
    )
    return [jnp.sqrt(jnp.mean(jnp.square(values[name]))) for name in names]

  @jax.jit
  def gradients(variables):
    def loss(params):
      variables_ = {**variables, "params": params}
      key = jax.random.key(0)
      return run.task.loss(variables_, batch, key)[0] / run.task.weight(batch)

    of = jax.grad(loss)(variables["params"])
    leaves = [jax.tree.leaves(of[f"layer_{i}"]) for i in range(depth)]
    return [jnp.sqrt(sum(jnp.sum(x**2) for x in own)) for own in leaves]

  return {
    "hidden_rms": [float(x) for x in states(run.variables)],
    "gradient_norm": [float(x) for x in gradients(run.variables)],
  }


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Losses with growth and evenness; and sizes by layer, means of seeds."""
  losses, by_layer = [], []
  for name in RESIDUALS:
    own = [line for line in lines if line["row"] == name]
    hidden, gradient = (
      np.array([line[key] for line in own])
      for key in ("hidden_rms", "gradient_norm")
    )
    losses.append(
      [
        name,
        f"{own[0]['parameters']:,}",
        study.spread([line["bits_per_byte"] for line in own], 3),
        study.spread(hidden[:, -1] / hidden[:, 0], 1),
        study.spread(gradient.max(1) / gradient.min(1), 1),
      ]
    )
    for what, values in (("stream", hidden), ("gradient", gradient)):
      sizes = [f"{x:.2g}" for x in values.mean(0)]
      by_layer.append([f"{name}, {what}", *sizes])
  header = ("residual", "parameters", "bits per byte")
  header += ("stream, last / first layer", "gradient, largest / smallest layer")
  layers = map(str, range(1, len(by_layer[0])))
  return {
    "attention_residuals": study.markdown(header, losses),
    "attention_residuals_layers": study.markdown(("layer", *layers), by_layer),
  }


def _config(
  fields: Mapping[str, Any], variant: str
) -> ml_collections.ConfigDict:
  config = language.get_config("study")
  config.model.update(dict(width=32, depth=DEPTH, heads=2, mlp_width=86))
  config.model.update(dict(fields))
  config.data.length = 64
  config.train_for = config.evaluate_every = "300 steps"
  config.checkpoint.every = "300 steps"
  if variant == "test":
    # A deep model takes long to compile.
    config = study.shrunk(config, depth=2)
    if "residual_block" in fields:
      config.model.residual_block = 2
  return config
