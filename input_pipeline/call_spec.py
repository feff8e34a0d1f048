"""Chains of calls written as strings, such as "resize(256)|flip".

Strings are what a shell overrides most easily.
"""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of a chain, of which nothing was evaluated yet.

  Attributes:
    name: of what is called.
    text: as Python writes the call, for messages.
    node: its syntax tree.
  """

  name: str
  text: str
  node: ast.Call

  def make(
    self,
    function: Callable[..., Any],
    *,
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
  ) -> Any:
    """Calls a function with the options that are written.

    Args:
      function: what the name stands for.
      defaults: options it gets where none is written, if it has them.
      overrides: options it gets whatever is written, if it has them.

    Raises:
      ValueError: for options that it has not or does not take, with those that
        there are.
    """
    signature = inspect.signature(function)
    arguments = [_evaluate(argument) for argument in self.node.args]
    options = {str(k.arg): _evaluate(k.value) for k in self.node.keywords}
    try:
      written = signature.bind_partial(*arguments, **options).arguments
      missing = {
        name: value
        for name, value in defaults.items()
        if name in signature.parameters and name not in written
      }
      bound = signature.bind(*arguments, **options, **missing)
      bound.arguments |= {
        name: value
        for name, value in (overrides or {}).items()
        if name in signature.parameters
      }
      return function(*bound.args, **bound.kwargs)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"{self.text}: {error} Its options: {_describe(signature)}."
      ) from error


def parse(spec: str, example: str) -> list[Call]:
  """Takes a chain of calls joined by "|" apart.

  Args:
    spec: names with options in Python's syntax. Only literals are understood,
      and a bare word is a string: `method=bilinear`.
    example: a right one, for the message.

  Raises:
    ValueError: if it is no chain.
  """
  try:
    tree = ast.parse(spec.strip(), mode="eval").body
  except SyntaxError as error:
    raise ValueError(
      f"{spec!r} is not of the form {example!r}: {error.msg}."
    ) from error
  return [_call(node) for node in _split(tree)]


def _split(node: ast.expr) -> list[ast.expr]:
  """The operands of a chain of "|"."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return _split(node.left) + _split(node.right)
  return [node]


def _call(node: ast.expr) -> Call:
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  return Call(ast.unparse(call.func), ast.unparse(call), call)


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
