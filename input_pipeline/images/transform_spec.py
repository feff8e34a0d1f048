"""Transforms written as strings, such as "random_resized_crop|flip()".

Strings are what a shell overrides most easily:
`--config.data.train_transform='affine(rotate=15)|flip'`.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from input_pipeline.images import augment, steps, transforms
from input_pipeline.stream import Example


def create_transform(
  spec: str,
  *,
  image_size: int,
  images: Sequence[str] = ("image",),
  label_maps: Sequence[str] = (),
) -> Callable[[Example, np.random.Generator], Example]:
  """Makes one transform of operations joined by "|", from left to right.

  What moves pixels moves those of all images and label maps alike, by the same
  draws; label maps, whose numbers are names, are never interpolated. What
  changes values changes the first of `images` only.

  Args:
    spec: names of `augment.OPERATIONS` with options in Python's syntax. Only
      literals are understood, and a bare word is a string: `method=bilinear`.
    image_size: the `size` of operations that are given none, in pixels.
    images: which arrays of an example are images.
    label_maps: which are maps of labels, uint8 `[height, width, 1]`.

  Returns:
    A function of an example, a dictionary, and a random generator that returns
    the example with other images, uint8 `[height, width, channels]`. They may
    be `decode.EncodedImage` before. It raises `ValueError` where they differ in
    size.

  Raises:
    ValueError: for anything else, with the operations or options there are.
  """
  try:
    tree = ast.parse(spec.strip(), mode="eval").body
  except SyntaxError as error:
    raise ValueError(
      f"{spec!r} is not of the form 'resize(256)|center_crop': {error.msg}."
    ) from error
  sequence = [
    _create_step(node, image_size, images, label_maps) for node in _split(tree)
  ]
  names = (*images, *label_maps)

  def apply(example: Example, rng: np.random.Generator) -> Example:
    changed = functools.reduce(lambda x, step: step(x, rng), sequence, example)
    return steps.decode_all(changed, names)

  return apply


def _split(node: ast.expr) -> list[ast.expr]:
  """The operands of a chain of "|"."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return _split(node.left) + _split(node.right)
  return [node]


def _create_step(
  node: ast.expr,
  image_size: int,
  images: Sequence[str],
  label_maps: Sequence[str],
) -> steps.Step:
  """The operation that a syntax tree names, on all that it acts on."""
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  name = ast.unparse(call.func)
  if name not in augment.OPERATIONS:
    raise ValueError(
      f"{name!r} is no operation; there are {', '.join(augment.OPERATIONS)}."
    )
  names = (*images, *label_maps)
  if name in augment.SINGLE and len(names) > 1:
    raise ValueError(
      f"{name!r} moves pixels and changes their values in one, so it is for"
      f" single images, not for {', '.join(names)}."
    )
  transform = _create_operation(call, image_size)
  if name not in augment.GEOMETRIC:
    return steps.Step({images[0]: transform})
  unmixed = _create_operation(call, image_size, method="nearest")
  return steps.Step(
    dict.fromkeys(images, transform) | dict.fromkeys(label_maps, unmixed)
  )


def _create_operation(
  call: ast.Call, image_size: int, **overrides: Any
) -> transforms.Transform:
  """Calls the operation that a syntax tree names.

  Of `overrides` it gets the options that it has, whatever is written.
  """
  operation = augment.OPERATIONS[ast.unparse(call.func)]
  signature = inspect.signature(operation)
  arguments = [_evaluate(argument) for argument in call.args]
  options = {str(k.arg): _evaluate(k.value) for k in call.keywords}
  if "size" in signature.parameters and not arguments:
    options.setdefault("size", image_size)
  try:
    bound = signature.bind(*arguments, **options)
    bound.arguments |= {
      k: v for k, v in overrides.items() if k in signature.parameters
    }
    return operation(*bound.args, **bound.kwargs)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"{ast.unparse(call)}: {error} Its options: {_describe(signature)}."
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
