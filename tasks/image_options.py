"""What a person asks of a generator of images, read and checked."""

import re
from collections.abc import Sequence

import flax.linen as nn
import numpy as np
from etils import epath

import storage
from input_pipeline.latents import captions

_FIRST = 10


def choose(
  model: nn.Module, classes: str, text: str
) -> tuple[np.ndarray, np.ndarray | None, list[int]]:
  """Finds what images are made of.

  Args:
    model: of classes or of texts.
    classes: what `parse_numbers` reads.
    text: a file of encoded texts, for a model of texts.

  Returns:
    (given, lengths, numbers): for each row, with its number.

  Raises:
    ValueError: if there is no such class or text, or no such file.
  """
  if not model.text_width:
    if text:
      raise ValueError(
        f"text={text!r} is for models of texts; this one has "
        f"{model.num_classes} classes."
      )
    numbers = parse_numbers(classes, model.num_classes, "class")
    return np.array(numbers, np.int32), None, numbers
  if not text:
    raise ValueError("text='' has no texts: give a file of encoded ones.")
  found = captions.load(text)
  numbers = parse_numbers(classes, len(found.text), "text")
  given = np.asarray(found.text[numbers], np.float32)
  return given, found.lengths[numbers], numbers


def parse_numbers(classes: str, count: int, what: str) -> list[int]:
  """Reads "3,5", "0..9", "0..2,7", "all" or "first".

  Args:
    classes: to read.
    count: how many there are.
    what: one of them, for the error.

  Raises:
    ValueError: for anything else, and for a number that is not there.
  """
  if classes in ("all", "first"):
    return list(range(count if classes == "all" else min(count, _FIRST)))
  numbers = []
  for part in classes.split(","):
    match = re.fullmatch(r"\s*(\d+)(?:\s*\.\.\s*(\d+))?\s*", part)
    first, last = match.groups() if match else ("1", "0")
    chosen = range(int(first), int(last or first) + 1)
    if not chosen:
      raise ValueError(
        f"classes={classes!r} is no list of numbers: {part!r}; write it as "
        '"3,5", "0..9", "all" or "first".'
      )
    # Before a list of them is made, which may be long.
    if chosen[-1] >= count:
      raise ValueError(
        f"classes={classes!r}: there is no {what} {chosen[-1]}; there are "
        f"{count}, from 0 to {count - 1}."
      )
    numbers += chosen
  return numbers


def parse_guidance(guidance: str) -> float | list[float]:
  """Reads a number, or several with commas.

  Raises:
    ValueError: for anything else.
  """
  try:
    values = [float(part) for part in guidance.split(",")]
  except ValueError as error:
    raise ValueError(
      f"guidance={guidance!r} is no number and no list of them, as 2.4 or "
      "1,1.5,2."
    ) from error
  return values if len(values) > 1 else values[0]


def check_file(option: str, path: str, suffixes: Sequence[str]) -> epath.Path:
  """Returns the path of a file that can be written.

  Raises:
    ValueError: if its folder does not exist or it has another suffix.
  """
  file = storage.path(path)
  if file.suffix not in suffixes:
    raise ValueError(f"{option}={path!r} must end in {' or '.join(suffixes)}.")
  if not file.parent.is_dir():
    raise ValueError(
      f"{option}={path!r}: the folder {str(file.parent)!r} does not exist."
    )
  return file
