"""Do routers stream where near tokens are enough, and not where they are not?

"Flux Attention" (arXiv 2604.07394) claims that a router for each layer, trained
on a frozen model for a share of streaming layers, finds which rows need full
attention. A small model learns to repeat the last token and to recall what came
with a key far away. Then routers are trained, alone and as published with
queries, keys and values at a small rate, for targets of 1.0 and 0.45. Measured
is the accuracy of both tasks beside that of all layers full, of all streaming,
and, as the control, of static choices: the mean and the best of all that stream
as many layers in every row as the routers do on average.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import routing, sequences
from models import taps
from tools import study

_GROUPS = ("near", "far")


_ROUTED = {"routers": "routers", "routers, q, k, v": "projections"}


def rows(variant: str) -> list[study.Row]:
  """The model with full attention, and routers on it."""
  full = sequences.get_config("near_and_far")
  routed = [routing.get_config(variant) for variant in _ROUTED.values()]
  for config in (full, *routed):
    config.evaluate_every = config.checkpoint.every = config.train_for
    config.data.eval_examples = 400
  if variant == "test":
    full, first = _small(full), _small(routed[0])
    # One for both: compiling is all that they cost.
    routed = [first, first]
  return [
    study.Row("trained", full),
    *(
      study.Row(name, config, begins_with=full)
      for name, config in zip(_ROUTED, routed, strict=True)
    ),
  ]


def _small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  config = study.shrunk(config, depth=1)
  return config


def measure(run: study.Run) -> dict[str, Any]:
  """Accuracies with given choices of layers."""
  if run.row.name not in _ROUTED:
    return {}
  depth = run.config.model.depth
  task = copy.copy(run.task)
  task.model = taps.edited(task.model, {"layer_*/mixer/route": _given})
  evaluation = task.evaluate_split(run.mesh)

  def evaluated(streaming: Sequence[int] | None) -> Mapping[str, float]:
    # Without a choice of ours, layers choose.
    routes = np.full(depth, np.nan, np.float32)
    if streaming is not None:
      routes = np.float32([i not in streaming for i in range(depth)])
    return evaluation.run(taps.with_given(run.variables, routes))

  chosen = evaluated(None)
  count = round(depth * chosen["sparsity"])
  static = [
    evaluated(layers) for layers in itertools.combinations(range(depth), count)
  ]
  result = {"depth": depth, "static_layers": count}
  result["sparsity"] = chosen["sparsity"]
  for name in _GROUPS:
    accuracy = f"accuracy_{name}"
    own = [one[accuracy] for one in static]
    result |= {
      accuracy: chosen[accuracy],
      f"sparsity_{name}": chosen[f"sparsity_{name}"],
      f"full_{name}": evaluated(())[accuracy],
      f"streaming_{name}": evaluated(range(depth))[accuracy],
      f"static_{name}": float(np.mean(own)),
    }
  best = max(static, key=lambda one: one["accuracy"])
  return result | {f"best_{n}": best[f"accuracy_{n}"] for n in _GROUPS}


def _given(route: jax.Array, site: taps.Site) -> jax.Array:
  """The choice that is given for a layer, or its own."""
  given = site.given[site.layer]
  return jnp.where(jnp.isnan(given), route, given)


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Shares of streaming layers and accuracies, a part for each kind."""
  kinds = (
    ("all full", "full", "0"),
    ("all streaming", "streaming", "1"),
    ("as routed", "accuracy", "routed"),
    ("static, mean of all choices", "static", "static"),
    ("static, the best choice", "best", "static"),
  )
  table = []
  for row in _ROUTED:
    own = [line for line in lines if line["row"] == row]
    of = lambda name, own=own: study.spread([line[name] for line in own], 3)
    static = study.spread(
      [line["static_layers"] / line["depth"] for line in own], 3
    )
    for label, name, share in kinds:
      shares = {
        "static": [static, static],
        "routed": [of("sparsity_near"), of("sparsity_far")],
      }.get(share, [share, share])
      accuracies = [of(f"{name}_near"), of(f"{name}_far")]
      table.append([row, label, *shares, *accuracies])
  header = ("trained", "layers", "streaming, near", "far", "right, near", "far")
  return {"flux_attention": study.markdown(header, table)}
