"""A language model of lists of keys and labels, to calibrate its attention.

A row is a BOS, and pairs of a key and a label with a newline behind each. Every
row draws some keys and for each a label, which most of its pairs have and some
have not, so that an answer has to be gathered from several places. It is asked
for the label of its last key.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

import models
from tools import array_training

BOS, NEWLINE = 0, 1
KEYS, LABELS = 16, 6
FIRST_LABEL = 2 + KEYS
VOCABULARY = FIRST_LABEL + LABELS
PAIRS, KEYS_OF_A_ROW, TRUE_SHARE = 12, 3, 0.7
# To the last key, which is asked.
LENGTH = 3 * PAIRS + 2
STEPS, BATCH, LEARNING_RATE = 400, 64, 3e-3


class Lists(NamedTuple):
  """Rows and what is asked of them.

  Attributes:
    tokens: int32 [number, LENGTH], ending with the key that is asked.
    labels: int32 [number], its label, as a token.
  """

  tokens: np.ndarray
  labels: np.ndarray


class Subject(NamedTuple):
  """A trained model and its variables."""

  model: nn.Module
  variables: dict[str, Any]


def draw(rng: np.random.Generator, number: int) -> Lists:
  """Draws rows; the key that is asked has been there twice or more."""
  ranks = rng.random((number, KEYS)).argsort(axis=1)
  keys = 2 + ranks[:, :KEYS_OF_A_ROW]
  labels = rng.integers(LABELS, size=keys.shape)
  which = rng.integers(KEYS_OF_A_ROW, size=(number, PAIRS))
  asked = which[:, 0]
  # Of random places one more is the key that is asked.
  again = rng.integers(1, PAIRS, size=number)
  which[np.arange(number), again] = asked
  told = np.take_along_axis(labels, which, axis=1)
  other = (told + rng.integers(1, LABELS, size=told.shape)) % LABELS
  told = np.where(rng.random(told.shape) < TRUE_SHARE, told, other)
  tokens = np.full((number, LENGTH), NEWLINE, np.int32)
  tokens[:, 0] = BOS
  tokens[:, 1:-1:3] = np.take_along_axis(keys, which, axis=1)
  tokens[:, 2::3] = FIRST_LABEL + told
  rows = np.arange(number)
  tokens[:, -1] = keys[rows, asked]
  return Lists(tokens, (FIRST_LABEL + labels[rows, asked]).astype(np.int32))


def most_frequent(lists: Lists) -> float:
  """How often the most frequent label of the key is right; of several, by lot.

  It is about what can be told from a row.
  """
  pairs = lists.tokens[:, 1:-1].reshape(len(lists.tokens), PAIRS, 3)
  own = pairs[:, :, 0] == lists.tokens[:, -1:]
  labels = np.arange(FIRST_LABEL, VOCABULARY)
  told = own[:, :, None] & (pairs[:, :, 1, None] == labels)
  count = told.sum(axis=1)
  best = count == count.max(axis=1, keepdims=True)
  right = best & (labels == lists.labels[:, None])
  return float((right / best.sum(axis=1, keepdims=True)).sum(axis=1).mean())


def make_model(variant: str) -> nn.Module:
  """The model, without its parameters."""
  small = variant == "test"
  return models.create(
    "transformer",
    vocabulary_size=VOCABULARY,
    width=16 if small else 64,
    depth=3 if small else 4,
    heads=4,
    mlp_width=16 if small else 128,
  )


def trained(folder: epath.Path, seed: int, variant: str = "full") -> Subject:
  """The model, trained by the first call and kept in `folder`.

  Args:
    folder: of what rows share.
    seed: of parameters and rows.
    variant: "full", or "test" for two steps of a very small one.
  """
  model = make_model(variant)

  def make():
    variables = jax.jit(model.init)(
      jax.random.key(seed), jnp.zeros((1, LENGTH), jnp.int32)
    )
    return train(model, variables, seed, 2 if variant == "test" else STEPS)

  path = epath.Path(folder) / f"key_label_lists_{seed}.msgpack"
  return Subject(model, array_training.kept(path, make))


def train(model, variables, seed: int, steps: int) -> dict[str, Any]:
  """Trains on all labels of keys that were there before, and on the answer."""
  rng = np.random.default_rng((seed, 0))
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, LEARNING_RATE, max(1, steps // 20), max(2, steps), 1e-5
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05)
  )

  def batch():
    lists = draw(rng, BATCH)
    targets = np.append(lists.tokens[:, 1:], lists.labels[:, None], axis=1)
    return lists.tokens, targets, asked_again(lists.tokens)

  def loss(variables, tokens, targets, weights):
    logits = model.apply(variables, tokens, train=True)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (each * weights).sum() / weights.sum()

  return array_training.minimized(
    loss, optimizer, variables, (batch() for _ in range(steps))
  )


def asked_again(tokens: np.ndarray) -> np.ndarray:
  """Where a key stands that was there before, float32 [number, LENGTH]."""
  weights = np.zeros(tokens.shape, np.float32)
  places = range(1, LENGTH, 3)
  for place in places:
    before = tokens[:, 1:place:3] == tokens[:, place, None]
    weights[:, place] = before.any(axis=1)
  return weights
