"""How probable a language model finds given answers, by teacher forcing."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import decoding, prompts


def log_probabilities(
  model: nn.Module,
  variables: Mapping[str, Any],
  questions: Sequence[Sequence[int]],
  answers: Sequence[Sequence[int]],
) -> np.ndarray:
  """The logarithm of the probability that each answer is sampled.

  At temperature 1, with nothing cut off. Where an answer, its stop token
  included, is the only right one, this is that of passing, which makes it an
  oracle of `evaluation.pass_until`; its negative is the loss that
  `scaling_law.rates_from_losses` takes.

  Args:
    model: a causal language model.
    variables: its variables.
    questions: tokens of each item's prompt, at least one.
    answers: tokens that would follow, at least one.

  Returns:
    float64 [items], in nats, at most 0.

  Raises:
    ValueError: if there are not as many answers as questions, one of them is
      empty, or the model does not know a token.
  """
  if len(questions) != len(answers):
    raise ValueError(
      f"{len(questions)} questions and {len(answers)} answers do not fit: "
      "there must be one for each."
    )
  for i, answer in enumerate(answers):
    if not len(answer):
      raise ValueError(f"answers[{i}] is empty; it needs a token.")
  prompts.check_prompts(model, questions)
  whole = [[*q, *a] for q, a in zip(questions, answers, strict=True)]
  prompts.check_prompts(model, whole)
  longest = max(map(len, whole))
  # On the right, where a causal model does not look.
  tokens = np.zeros((len(whole), longest), np.int32)
  counted = np.zeros((len(whole), longest), bool)
  for i, row in enumerate(whole):
    tokens[i, : len(row)] = row
    counted[i, len(questions[i]) : len(row)] = True
  found = _of_tokens(decoding.hashable(model), variables, tokens)
  return np.where(counted[:, 1:], found, 0.0).sum(axis=1, dtype=np.float64)


@functools.partial(jax.jit, static_argnames="model")
def _of_tokens(model, variables, tokens) -> jax.Array:
  """Log probabilities of all tokens but the first, [batch, length - 1]."""
  logits = model.apply(variables, tokens[:, :-1], train=False)
  found = jax.nn.log_softmax(logits.astype(jnp.float32))
  return jnp.take_along_axis(found, tokens[:, 1:, None], axis=-1)[..., 0]
