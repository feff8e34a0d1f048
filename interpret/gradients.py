"""Gradient times input: to first order, what a metric owes to a part.

Of tokens it is the gradient by a mixture of embeddings, at the mixture that is
the token itself (Denil et al. 2014, arXiv 1412.6815; with a name in Shrikumar
et al., arXiv 1605.01713). Of values within a model it is the same at a tap:
x . dm/dx estimates what m would lose if x were zero, exactly where m is linear
in x.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import interpret
from interpret import model_kinds, tap_names

Metric = Callable[[Any], jax.Array]


class Gradients(NamedTuple):
  """Values within a model, and how a metric depends on them.

  Attributes:
    values: by the names of taps.
    gradients: of the metric, like the values.
  """

  values: dict[str, jax.Array]
  gradients: dict[str, jax.Array]

  def times_values(self) -> dict[str, jax.Array]:
    """Value times gradient, float32, by the names of taps."""
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    return jax.tree.map(jnp.multiply, wide(self.values), wide(self.gradients))


def of_tokens(
  model: nn.Module,
  variables: Mapping[str, Any],
  tokens: jax.Array,
  metric: Metric,
  **options: Any,
) -> jax.Array:
  """Returns embedding . gradient of each token, float32 [batch, length].

  Args:
    model: a `models.transformer.Transformer`.
    variables: its variables.
    tokens: integers [batch, length].
    metric: from what the model returns to an array, of which the gradient is
      that of the sum; see `interpret.metrics`.
    **options: of `model.apply`, as `positions=`.

  Raises:
    ValueError: if the tokens are no integers, or for another kind of model.
  """
  model_kinds.check_language_model(model)
  tokens = jnp.asarray(tokens)
  if not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(f"tokens are {tokens.dtype}; they must be integers")
  ones = jax.nn.one_hot(tokens, model.vocabulary_size, dtype=jnp.float32)

  def total(mixture):
    out, _ = interpret.run(model, variables, mixture, **options)
    return jnp.sum(metric(out))

  return jnp.sum(jax.grad(total)(ones) * ones, axis=-1)


def of_taps(
  model: nn.Module,
  variables: Mapping[str, Any],
  inputs: Any,
  metric: Metric,
  read: Sequence[str],
  **options: Any,
) -> Gradients:
  """Returns values and the gradients of a metric by them; it can be jitted.

  The gradient by a value is that of what follows it, also where it passes
  through other values that are read.

  Args:
    model: any model with taps.
    variables: its variables.
    inputs: as `interpret.run` has them.
    metric: from what the model returns to an array, of which the gradient is
      that of the sum.
    read: patterns of taps.
    **options: of `model.apply`, as `positions=`.

  Raises:
    ValueError: if a pattern fits no tap.
  """
  known = interpret.list_taps(model, variables, inputs, **options)
  names = [n for pattern in read for n in tap_names.matching(pattern, known)]
  names = list(dict.fromkeys(names))
  # What is added to a value has its gradient, and cuts no other off.
  zeros = collections.OrderedDict(
    (name, jnp.zeros(known[name].shape, known[name].dtype)) for name in names
  )

  def total(added):
    edit = [(name, _add(added[name])) for name in names]
    out, values = interpret.run(
      model, variables, inputs, read=names, edit=edit, **options
    )
    return jnp.sum(metric(out)), values

  gradients, values = jax.grad(total, has_aux=True)(zeros)
  return Gradients(values, gradients)


def _add(array: jax.Array) -> Callable[..., jax.Array]:
  return lambda value, site: value + array
