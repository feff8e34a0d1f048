"""Transforms written as strings, such as "random_resized_crop|flip()".

Strings are what a shell overrides most easily:
`--config.data.train_transform='affine(rotate=15)|flip'`.
"""

import ast
import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from input_pipeline.images import augment, decode, transforms


def create_transform(
  spec: str, *, image_size: int
) -> Callable[..., np.ndarray]:
  """Makes one transform of operations joined by "|", from left to right.

  Args:
    spec: names of `augment.OPERATIONS` with options in Python's syntax. Only
      literals are understood, and a bare word is a string: `method=bilinear`.
    image_size: the `size` of operations that are given none, in pixels.

  Returns:
    A function of a uint8 image `[height, width, channels]`, or a
    `decode.EncodedImage`, and a random generator. It returns a uint8 image.

  Raises:
    ValueError: for anything else, with the operations or options there are.
  """
  try:
    tree = ast.parse(spec.strip(), mode="eval").body
  except SyntaxError as error:
    raise ValueError(
      f"{spec!r} is not of the form 'resize(256)|center_crop': {error.msg}."
    ) from error
  transforms = [_create_operation(node, image_size) for node in _split(tree)]

  def apply(
    image: np.ndarray | decode.EncodedImage, rng: np.random.Generator
  ) -> np.ndarray:
    first, *rest = transforms
    if isinstance(image, np.ndarray):
      pixels = first(image, rng)
    elif hasattr(first, "decode"):
      pixels = first.decode(image, rng)
    else:
      pixels = first(image.decode(), rng)
    return functools.reduce(lambda x, f: f(x, rng), rest, pixels)

  return apply


def _split(node: ast.expr) -> list[ast.expr]:
  """The operands of a chain of "|"."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return _split(node.left) + _split(node.right)
  return [node]


def _create_operation(node: ast.expr, image_size: int) -> transforms.Transform:
  """Calls the operation that a syntax tree names."""
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  name = ast.unparse(call.func)
  if name not in augment.OPERATIONS:
    raise ValueError(
      f"{name!r} is no operation; there are {', '.join(augment.OPERATIONS)}."
    )
  operation = augment.OPERATIONS[name]
  signature = inspect.signature(operation)
  arguments = [_evaluate(argument) for argument in call.args]
  options = {str(k.arg): _evaluate(k.value) for k in call.keywords}
  if "size" in signature.parameters and not arguments:
    options.setdefault("size", image_size)
  try:
    signature.bind(*arguments, **options)
    return operation(*arguments, **options)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"{ast.unparse(node)}: {error} Its options: {_describe(signature)}."
    ) from error


def _evaluate(node: ast.expr) -> Any:
  """The value of a literal or a bare word."""
  if isinstance(node, ast.Name):
    return node.id
  try:
    return ast.literal_eval(node)
  except ValueError as error:
    raise ValueError(
      f"{ast.unparse(node)!r} is neither a literal nor a word."
    ) from error


def _describe(signature: inspect.Signature) -> str:
  """Names and defaults of an operation's options."""
  return ", ".join(
    p.name if p.default is p.empty else f"{p.name}={p.default}"
    for p in signature.parameters.values()
  )
