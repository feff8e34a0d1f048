"""Logit lens: what the model would say if it stopped after a layer.

The final norm and the head, which the last layer's state is for, read the
states of all layers (nostalgebraist, "interpreting GPT: the logit lens", 2020;
a baseline of arXiv 2303.08112). Nothing makes earlier layers use the same
directions, so what it shows of them is a lower bound of what they know.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import interpret
from interpret import model_kinds


class Lens(NamedTuple):
  """What each state of the residual stream says.

  Attributes:
    names: of the states, the embeddings first.
    logits: float32 [names, batch, length, classes]; the last are the model's.
      Of a `VisionLanguage` the image's positions have some too.
  """

  names: tuple[str, ...]
  logits: jax.Array

  def top(self, count: int = 1) -> tuple[jax.Array, jax.Array]:
    """Returns (probabilities, tokens) of the most probable.

    Args:
      count: how many.

    Returns:
      float32 and int32 [names, batch, length, count], the largest first.
    """
    return jax.lax.top_k(jax.nn.softmax(self.logits), count)

  def log_probabilities(self, tokens: jax.Array) -> jax.Array:
    """Returns ln p of tokens [batch, length], [names, batch, length]."""
    logs = jax.nn.log_softmax(self.logits)
    wanted = jnp.broadcast_to(jnp.asarray(tokens)[None], logs.shape[:-1])
    return jnp.take_along_axis(logs, wanted[..., None], axis=-1)[..., 0]

  def ranks(self, tokens: jax.Array) -> jax.Array:
    """Returns how many tokens are more probable, int32 like the above."""
    own = self.log_probabilities(tokens)[..., None]
    return jnp.sum(jax.nn.log_softmax(self.logits) > own, axis=-1)


def lens(
  model: nn.Module,
  variables: Mapping[str, Any],
  inputs: Any,
  *,
  last: int | None = None,
  **options: Any,
) -> Lens:
  """Reads all states of a language model through its final norm and head.

  Args:
    model: a `models.transformer.Transformer`, or one that inherits from it.
    variables: its variables.
    inputs: as `interpret.run` has them.
    last: how many of a row's last positions; all if None. A row has as many
      logits times the number of layers.
    **options: of `model.apply`, as `positions=`.

  Raises:
    ValueError: for another kind of model, for residual="attention", whose
      output is not made of the last state, and if `last` is not positive.
  """
  model_kinds.check_language_model(model)
  if model.residual != "sum":
    raise ValueError(
      f"residual is {model.residual!r}: the head reads no state of a layer "
      "there; the lens needs residual='sum'"
    )
  if last is not None and last < 1:
    raise ValueError(f"last is {last}; it must be 1 or more, or None for all")
  layers = (f"layer_{i}/hidden_state" for i in range(model.depth))
  names = ("embedded_state", *layers)
  _, values = interpret.run(model, variables, inputs, read=names, **options)
  states = [values[name] for name in names]
  if last is not None:
    states = [state[:, -last:] for state in states]
  logits = jax.lax.map(
    lambda state: read_out(model, variables, state), jnp.stack(states)
  )
  return Lens(names, logits)


def read_out(
  model: nn.Module, variables: Mapping[str, Any], state: jax.Array
) -> jax.Array:
  """Returns the logits of a residual stream, as after the last layer.

  Args:
    model: a `models.transformer.Transformer`.
    variables: its variables.
    state: [batch, length, width].

  Returns:
    float32 [batch, length, classes].
  """

  def read(module, state):
    if module.norm_placement != "post":
      state = module.final_norm(state)
    table = module.embed.embedding if module.tied_head else None
    return module.head(state, table)

  return model.apply(variables, state, method=read)
