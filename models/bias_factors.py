"""Tables of relative biases of a trained model, turned into factors.

"FlashBias" (arXiv 2505.12044), section 3.2: a bias is the product of two
factors, of the rank that keeps a share of its energy; a layer that would need a
higher rank than a limit keeps its table.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import attention
from attention import checks, scores

# Names of the parameters, [tokens, heads, rank] each.
FACTORS = ("query_bias_factor", "key_bias_factor")
TABLE = "relative_bias_table"


@dataclasses.dataclass(frozen=True)
class Layer:
  """What became of the table of one layer.

  Attributes:
    name: path of the layer, as "stage_0/block_1/grid_attention".
    tokens: of a window.
    ranks: the least rank of each head that keeps the energy.
    rank: of the factors, 0 where the layer keeps its table. One for all heads,
      the greatest.
    error: the largest difference eps between the bias and the product of the
      factors; 0 where the table stays.
  """

  name: str
  tokens: int
  ranks: tuple[int, ...]
  rank: int
  error: float

  @property
  def bound(self) -> float:
    """At most how much the weights of a query change in sum, e^(2 eps) - 1.

    The output of the attention changes by at most this times the largest value.
    (Derived for the sheet, not in the paper: weights change by factors between
    e^(-2 eps) and e^(2 eps).)
    """
    return float(np.expm1(2 * self.error))


def convert(
  model: nn.Module,
  variables: Mapping[str, Any],
  *,
  energy: float = 0.995,
  limit: int = 16,
) -> tuple[nn.Module, dict[str, Any], list[Layer]]:
  """Returns a model whose biases are factors where these are of low rank.

  Args:
    model: with `bias_ranks` and `biased_layers`, as MaxViT, and no factors yet.
    variables: its "params" and other collections, trained.
    energy: share of the sum of squared biases that each head keeps; the paper
      has 0.995.
    limit: highest rank; the paper has 16.

  Returns:
    (model, variables, layers): the same model with `bias_ranks`, and what it is
    applied with; what became of each layer. Factors are float32 and balanced,
    each with the square root of the singular values (the authors do not say
    how they split them). They do not follow the table any more, so that a
    model is converted when it is trained.

  Raises:
    ValueError: if the model has no tables, is converted already, or `energy` or
      `limit` is out of range.
  """
  _check(model, energy, limit)
  params = variables["params"]
  layers = []
  for name in model.biased_layers:
    bias = bias_of(model, params, name)
    layer, factors = _factored(name, bias, energy, limit)
    layers.append(layer)
    if factors:
      params = _replaced(
        params,
        [*name.split("/"), "attention"],
        lambda old, new=factors: {
          **{key: x for key, x in old.items() if key != TABLE},
          **new,
        },
      )
  ranks = {layer.name: layer.rank for layer in layers if layer.rank}
  return (
    model.clone(bias_ranks=ranks),
    {**variables, "params": params},
    layers,
  )


def bias_of(
  model: nn.Module, params: Mapping[str, Any], name: str
) -> jax.Array:
  """Returns the bias that a layer adds, of its table or its factors.

  Args:
    model: as for `convert`, converted or not.
    params: its "params".
    name: one of `model.biased_layers`.

  Returns:
    float32 [heads, tokens, tokens].
  """
  own = _at(params, name)
  if TABLE not in own:
    pair = [jnp.asarray(own[factor], jnp.float32) for factor in FACTORS]
    return jnp.einsum("qhr,khr->hqk", *pair, precision="highest")
  table = jnp.asarray(own[TABLE], jnp.float32)
  table = attention.resize_relative_table(table, model.window_size)
  return attention.relative_position_bias(table)


def _check(model: nn.Module, energy: float, limit: int) -> None:
  if not getattr(model, "biased_layers", ()):
    raise ValueError(
      f"model is a {type(model).__name__} without tables of relative biases; "
      "MaxViT has them"
    )
  if model.bias_ranks:
    raise ValueError(
      f"model has bias_ranks {dict(model.bias_ranks)}: it is converted already"
    )
  checks.share("energy", energy, positive=True)
  checks.whole("limit", limit, 1)


def _factored(
  name: str, bias: jax.Array, energy: float, limit: int
) -> tuple[Layer, dict[str, jax.Array]]:
  """What becomes of a bias, and its factors if it is of low rank."""
  ranks = tuple(scores.rank_for_energy(head[None], energy) for head in bias)
  tokens, rank = bias.shape[-1], max(ranks)
  if rank > limit:
    return Layer(name, tokens, ranks, 0, 0.0), {}
  mod = scores.svd_factors(bias, rank)
  # [1, tokens, heads, rank]
  pair = (mod.q_factor[0], mod.k_factor[0])
  product = jnp.einsum("qhr,khr->hqk", *pair, precision="highest")
  error = float(jnp.abs(product - bias).max())
  return (
    Layer(name, tokens, ranks, rank, error),
    dict(zip(FACTORS, pair, strict=True)),
  )


def _at(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  for part in (*name.split("/"), "attention"):
    params = params[part]
  return params


def _replaced(
  tree: Mapping[str, Any],
  path: list[str],
  change: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> dict[str, Any]:
  """The tree with what stands at a path changed."""
  if not path:
    return dict(change(tree))
  first, *rest = path
  return {**tree, first: _replaced(tree[first], rest, change)}
