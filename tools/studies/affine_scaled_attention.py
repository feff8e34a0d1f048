"""Does attention look less at first tokens where its weights are scaled?

"Affine-Scaled Attention" (arXiv 2602.23057) says so of alpha softmax(s) +
(alpha_mean - alpha) / N, against softmax and a learned sink, with a higher
entropy and no worse loss. Measured: the loss; the weight of a row's first token
and the entropy of rows, means over layers, heads and queries. Weights of the
affine form add up to less than one, so that their first token's weight is less
whatever they look at: the share of it, |w| of all |w|, is the figure that can
be compared. N is the length of training.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections

from configs import language
from input_pipeline import text
from interpret import statistics
from models import taps
from tools import study

# Queries at a row's beginning that see little but the first token.
SKIPPED = 8
ROWS = ("softmax", "softmax with sink", "affine")
COLUMNS = {
  "loss": 3,
  "first_token_weight": 4,
  "first_token_share": 4,
  "entropy": 3,
  "row_sum": 3,
}


def rows(variant: str) -> Sequence[study.Row]:
  """The kinds of attention."""
  configs = {name: language.get_config("study") for name in ROWS}
  length = configs["affine"].data.length
  sink = {"normalizer": "softmax_with_sink"}
  affine = {"normalizer": "affine", "normalizer_options": {"length": length}}
  configs["softmax with sink"].model.mixer_options = {"full": sink}
  configs["affine"].model.mixer_options = {"full": affine}
  return [
    study.Row(name, study.shrunk(config) if variant == "test" else config)
    for name, config in configs.items()
  ]


def measure(run: study.Run) -> dict[str, float]:
  """Means over the maps of all layers, on full rows of the evaluation."""
  tokens = _full_rows(run.config.data)

  def of_maps(variables):
    _, maps = taps.read(
      run.task.model, variables, tokens, names=[statistics.MAPS]
    )
    means = [_of_map(weights) for weights in maps.values()]
    return jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *means)

  measured = jax.jit(of_maps)(run.variables)
  return {name: float(value) for name, value in measured.items()}


def _of_map(weights: jax.Array) -> dict[str, jax.Array]:
  size = jnp.abs(weights)
  shares = size / size.sum(-1, keepdims=True)
  first = lambda x: statistics.first_token_attention(x, skip=SKIPPED).mean()
  return {
    "first_token_weight": first(weights),
    "first_token_share": first(shares),
    "entropy": statistics.attention_entropy(weights).mean(),
    "row_sum": weights.sum(-1).mean(),
  }


def _full_rows(data: ml_collections.ConfigDict) -> jax.Array:
  """At most 32 rows of one document each, [rows, length]."""
  batch = next(iter(text.eval_batches(data, batch_size=32)))
  return batch["tokens"][batch["positions"][:, -1] == data.length - 1]


def tables(lines: Sequence[Mapping]) -> dict[str, str]:
  """The loss and what attention looks at."""
  table = []
  for name in ROWS:
    own = [line for line in lines if line["row"] == name]
    table.append(
      [
        name,
        *(
          study.spread([line[column] for line in own], digits)
          for column, digits in COLUMNS.items()
        ),
      ]
    )
  header = ("attention", *(c.replace("_", " ") for c in COLUMNS))
  return {"affine_scaled_attention": study.markdown(header, table)}
