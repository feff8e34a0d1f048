"""The loss of a language model on rows longer than those it was trained on."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from input_pipeline import text

# Of a batch that is read, whatever is found in it.
_ROWS = 16


class Windows(NamedTuple):
  """Runs of text, each of one document.

  Attributes:
    tokens: int32 [windows, length].
    targets: int32 [windows, length], the token after each.
  """

  tokens: np.ndarray
  targets: np.ndarray


def losses(
  model: nn.Module,
  variables: Mapping[str, Any],
  data: ml_collections.ConfigDict,
  *,
  factors: Sequence[int] = (1, 2, 4, 8, 16),
  windows: int = 16,
) -> dict[int, float]:
  """Evaluates at multiples of the length of training.

  The targets are the same at each length, and so is their text: windows of the
  largest length are cut into shorter ones. So a model that uses what is far
  has a loss that falls with the length, and one that ignores it a flat one.

  Args:
    model: a language model.
    variables: its variables.
    data: `config.data` of its training, whose `length` is 1.
    factors: lengths, in units of the length of training; each divides the
      largest.
    windows: the most of the largest length.

  Returns:
    The mean cross entropy in nats, by factor.

  Raises:
    ValueError: if a factor does not divide the largest, or no document to
      evaluate on is as long.
  """
  longest = max(factors)
  if any(factor < 1 or longest % factor for factor in factors):
    raise ValueError(
      f"factors={tuple(factors)}: each must be at least 1 and divide the "
      f"largest, {longest}, whose windows are cut into shorter ones."
    )
  whole = evaluation_windows(data, longest * data.length, windows)
  return {n: loss(model, variables, whole, n * data.length) for n in factors}


def loss(
  model: nn.Module,
  variables: Mapping[str, Any],
  windows: Windows,
  length: int,
) -> float:
  """The mean cross entropy in nats in rows of `length`.

  Args:
    model: a language model.
    variables: its variables.
    windows: of a length that `length` divides.
    length: of a row.
  """
  rows = Windows(*(x.reshape(-1, length) for x in windows))
  at_once = max(1, windows.tokens.shape[1] // length)
  step = jax.jit(functools.partial(_nats, model))
  total = 0.0
  for start in range(0, len(rows.tokens), at_once):
    part = slice(start, start + at_once)
    total += float(step(variables, rows.tokens[part], rows.targets[part]))
  return total / rows.tokens.size


def evaluation_windows(
  data: ml_collections.ConfigDict, length: int, count: int
) -> Windows:
  """At most `count` windows to evaluate on, spread over all there are.

  Args:
    data: `config.data` of a language model.
    length: tokens of a window, all of one document.
    count: the most windows.

  Raises:
    ValueError: if there is none.
  """
  data = data.copy_and_resolve_references()
  data.update(length=length, packing="documents", random_offsets=False)
  data.eval_stride = 0
  found = []
  for batch in text.eval_batches(data, batch_size=_ROWS):
    full = batch["positions"][:, -1] == length - 1
    found += zip(batch["tokens"][full], batch["targets"][full], strict=True)
  if not found:
    raise ValueError(
      f"No document to evaluate on has {length} tokens and one to predict: "
      "give longer ones or a smaller factor."
    )
  count = min(count, len(found))
  chosen = np.linspace(0, len(found) - 1, count).round().astype(int)
  return Windows(*(np.stack([found[i][n] for i in chosen]) for n in (0, 1)))


def _nats(model, variables, tokens, targets) -> jax.Array:
  logits = model.apply(variables, tokens, train=False)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return jnp.sum(losses)
