"""Questions about digits on a grid, to ask a model that somebody edits.

One question an image, on handwriting that training has not seen: nothing but
the image tells its answer, as an earlier answer might.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from input_pipeline.sequences import digits_grid
from models import decoding
from tasks import vision_language


class Questions(NamedTuple):
  """Questions of one kind, with prompts of one length.

  Image token r side + c of `subject.model` is the digit in row r and column c,
  if patches are as large as digits and `compression` is 1.

  Attributes:
    images: float32 [number, height, width, 1], as the model sees them.
    prompts: int32 [number, length], whose answer is to follow.
    answers: int32 [number], the first word of the answer, which is all of it
      but for "list".
    grids: int32 [number, side, side], the digits.
    groups: names [number] of `DigitsGrid.groups`.
  """

  images: np.ndarray
  prompts: np.ndarray
  answers: np.ndarray
  grids: np.ndarray
  groups: np.ndarray


def ask(
  source: digits_grid.DigitsGrid,
  kind: str,
  number: int,
  *,
  seed: int = 0,
  split: str = "eval",
) -> Questions:
  """Draws questions of a kind; the first ones of more are the same.

  Args:
    source: of the model's training; its `side` and words count.
    kind: "which", "how_many", "is_there" or, if the source has it, "list".
    number: of images, with a question each.
    seed: of the draws.
    split: "eval", or "train" for the handwriting of training.

  Raises:
    ValueError: if the source has no such kind.
  """
  source = dataclasses.replace(source, kinds=(kind,), questions=1)
  word = {name: i for i, name in enumerate(source.words)}
  drawn = []
  for i in range(number):
    rng = np.random.default_rng((seed, i))
    image, grid = source.draw(rng, split)
    asked = source.ask(rng, grid)
    prompt = [word[name] for name in asked.words]
    drawn.append((image, prompt, word[asked.answer[0]], grid, asked.group))
  images, prompts, answers, grids, groups = zip(*drawn, strict=True)
  return Questions(
    images=np.asarray(vision_language.pixels(np.stack(images))),
    prompts=np.array(prompts, np.int32),
    answers=np.array(answers, np.int32),
    grids=np.array(grids, np.int32),
    groups=np.array(groups),
  )


def first_logits(
  model: nn.Module, variables: Mapping[str, Any], questions: Questions
) -> jax.Array:
  """Logits of the first word of each answer, float32 [number, words]."""
  return _first_logits(
    decoding.hashable(model), variables, questions.prompts, questions.images
  )


@functools.partial(jax.jit, static_argnums=0)
def _first_logits(model, variables, prompts, images):
  return model.apply(variables, prompts, images, train=False)[:, -1]


def right(
  model: nn.Module, variables: Mapping[str, Any], questions: Questions
) -> np.ndarray:
  """Whether the likeliest first word is the answer's, bool [number]."""
  logits = first_logits(model, variables, questions)
  return np.asarray(logits.argmax(-1)) == questions.answers


def accuracies(
  model: nn.Module, variables: Mapping[str, Any], questions: Questions
) -> dict[str, float]:
  """Accuracy of each group that there is, and "hallucination".

  That is how often a digit that is absent is not denied, of "is_there".
  """
  told = right(model, variables, questions)
  result = {
    str(name): float(told[questions.groups == name].mean())
    for name in np.unique(questions.groups)
  }
  if "absent" in result:
    result["hallucination"] = 1.0 - result["absent"]
  return result


def listed(
  model: nn.Module,
  variables: Mapping[str, Any],
  questions: Questions,
  source: digits_grid.DigitsGrid,
  **options: Any,
) -> list[list[int]]:
  """Lets a model list the digits of each image, by decoding.

  Args:
    model: that answers; one with edits decodes with them.
    variables: its variables.
    questions: of the kind "list".
    source: of the questions, which says what words mean.
    **options: of `decoding.generate`, as `temperature`; greedy without.

  Returns:
    What it says of each image, in its order and as often, words that are no
    digits left out.
  """
  end = source.words.index(digits_grid.END)
  options = {"max_tokens": len(_DIGITS) + 1, "stop": end, **options}
  said = decoding.generate(
    model,
    variables,
    questions.prompts.tolist(),
    images=questions.images,
    **options,
  )
  # The words of the first numbers are digits, and stand for themselves.
  return [[word for word in row if word in _DIGITS] for row in said]


def list_scores(
  said: Sequence[Sequence[int]], grids: np.ndarray
) -> dict[str, float]:
  """How true lists of digits are, means over images.

  Args:
    said: the digits of each image, as `listed` returns them.
    grids: integers [images, side, side], the digits that are there.

  Returns:
    "recall", the share of an image's digits that are said; "hallucinated", how
    many digits are said that are not there, each counted once; "precision", the
    share of different digits said that are there, of all images together; and
    "exact", how often list and image have the same digits.
  """
  there = [set(np.unique(grid).tolist()) for grid in grids]
  told = [set(row) for row in said]
  pairs = list(zip(told, there, strict=True))
  true = sum(len(a & b) for a, b in pairs)
  return {
    "recall": float(np.mean([len(a & b) / len(b) for a, b in pairs])),
    "hallucinated": float(np.mean([len(a - b) for a, b in pairs])),
    "precision": true / max(1, sum(map(len, told))),
    "exact": float(np.mean([a == b for a, b in pairs])),
  }


_DIGITS = range(10)
