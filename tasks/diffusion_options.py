"""What a person asks of a diffusion model, read and checked."""

import ast
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from generation import solvers
from tasks import image_options

_FIRST = 10


def choose(
  model: nn.Module, classes: str, text: str
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Finds what samples are made of.

  Args:
    model: of classes or of texts.
    classes: numbers as `image_options.parse_numbers` reads them, or, where an
      example has several, sums of them with commas.
    text: a file of encoded texts, for a model of texts.

  Returns:
    (condition, names): "label" int32 [rows] or [rows, labels], or "text" and
    "text_length", and a name for each row.

  Raises:
    ValueError: if there is no such class or text, or no such file.
  """
  labels = getattr(model, "label_tokens", 1)
  if labels > 1:
    chosen = parse_sums(classes, model.num_classes, labels)
    names = ["+".join(map(str, row)) for row in chosen]
    return {"label": chosen}, names
  given, lengths, numbers = image_options.choose(model, classes, text)
  names = list(map(str, numbers))
  if lengths is None:
    return {"label": given}, names
  return {"text": given, "text_length": np.asarray(lengths, np.int32)}, names


def parse_sums(classes: str, count: int, labels: int) -> np.ndarray:
  """Reads "0+7,3+3": the classes of each row, in ascending order.

  Args:
    classes: to read; "first" and "all" are one row for each class, with those
      that follow it.
    count: how many classes there are.
    labels: how many each row has.

  Returns:
    int32 [rows, labels].

  Raises:
    ValueError: for anything else.
  """
  if classes in ("first", "all"):
    first = np.arange(count if classes == "all" else min(count, _FIRST))
    rows = (first[:, None] + np.arange(labels)) % count
    return np.sort(rows, axis=1).astype(np.int32)
  rows = []
  for part in classes.split(","):
    numbers = re.fullmatch(r"\s*\d+(\s*\+\s*\d+)*\s*", part)
    row = sorted(map(int, part.split("+"))) if numbers else []
    if len(row) != labels or row[-1] >= count:
      raise ValueError(
        f"classes={classes!r}: {part!r} must be {labels} numbers from 0 to "
        f"{count - 1}, as {'+'.join(['0'] * (labels - 1) + [str(count - 1)])}, "
        "and rows have commas between them."
      )
    rows.append(row)
  return np.array(rows, np.int32)


def parse_options(text: str, name: str = "method_options") -> dict[str, Any]:
  """Reads "decay=0.5,window=(2,2),kind=entropy" by Python's rules.

  Words without quotes are text, and lists are tuples.

  Args:
    text: to read.
    name: of the option that has it.

  Raises:
    ValueError: for anything else.
  """
  wrong = ValueError(
    f"{name}={text!r} is not read: write names and values with commas, "
    'as "decay=0.5,window=(2,2)".'
  )
  try:
    call = ast.parse(f"f({text})", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
      raise wrong
    if call.args:
      raise wrong
    options = {word.arg: _value(word.value) for word in call.keywords}
    if None in options or len(options) < len(call.keywords):
      raise wrong
    return options
  except (SyntaxError, ValueError):
    raise wrong from None


def _value(node: ast.AST) -> Any:
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.Tuple | ast.List):
    return tuple(map(_value, node.elts))
  value = ast.literal_eval(node)
  if not isinstance(value, bool | int | float | str | None):
    raise ValueError("It is no number and no text.")
  return value


def parse_size(size: str, model: nn.Module) -> tuple[int, ...] | None:
  """Reads "16x16": sides of a sample; frames are those of training.

  Args:
    size: to read; empty is None.
    model: with the sides of its training and of its patches.

  Raises:
    ValueError: for anything else, and sides that the patches do not divide.
  """
  if not size:
    return None
  trained = model.sample_shape
  parts = size.split("x")
  sides = tuple(int(part) if part.isdecimal() else 0 for part in parts)
  if len(sides) == 2 and len(trained) == 3:
    sides = (trained[0], *sides)
  if len(sides) != len(trained) or min(sides) < 1:
    raise ValueError(
      f"size={size!r} must be {len(trained)} numbers, as "
      f"{'x'.join(map(str, trained))}."
    )
  patch = getattr(model, "patch_size", (1,) * len(sides))
  for side, p in zip(sides, patch, strict=True):
    if side % p:
      raise ValueError(
        f"size={size!r}: {side} is no multiple of {p}; model.patch_size is "
        f"{tuple(patch)}."
      )
  return sides


def of_sampling(
  sampling: Mapping[str, Any],
  *,
  guidance: str = "",
  steps: int = 0,
  solver: str = "",
) -> dict[str, Any]:
  """Steps, guidance and solver, those of a config where none are given.

  Args:
    sampling: `config.sampling`.
    guidance: a number as text; empty for the config's.
    steps: 0 for the config's.
    solver: empty for the config's.

  Raises:
    ValueError: for what does not fit.
  """
  options = {name: sampling[name] for name in ("steps", "guidance", "solver")}
  if guidance:
    options["guidance"] = image_options.parse_guidance(guidance)
    if isinstance(options["guidance"], list):
      raise ValueError(f"guidance={guidance!r} must be one number.")
  if steps < 0:
    raise ValueError(f"steps={steps} must be 1 or more, or 0 for the config's.")
  if steps:
    options["steps"] = steps
  if solver:
    options["solver"] = solver
  if options["solver"] not in solvers.SOLVERS:
    raise ValueError(
      f"solver={solver!r} must be one of {', '.join(solvers.SOLVERS)}."
    )
  return options
