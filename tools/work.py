"""Counts what a function multiplies and writes, from its jaxpr."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core


class Work(NamedTuple):
  """What matrix products and convolutions do.

  Attributes:
    multiply_adds: products that are summed; a FLOP count is twice this.
    activations: elements that they write.
  """

  multiply_adds: int
  activations: int


def count_work(function: Callable[..., Any], *shapes: Any) -> Work:
  """Counts the work of a call, whose arrays need not exist.

  Everything that JAX traces is counted, attention included, and loops as often
  as they run. Of the branches of a condition the one with most products counts;
  where they are one computation written for several platforms, the one for
  those that are not named, as that is the plain one.

  Args:
    function: to be traced.
    *shapes: arguments, arrays or `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: for a loop whose length is not known, or a kernel.
  """
  products = list(_products(jax.make_jaxpr(function)(*shapes).jaxpr))
  return Work(
    multiply_adds=sum(size * depth for size, depth in products),
    activations=sum(size for size, _ in products),
  )


def _products(jaxpr: core.Jaxpr) -> Iterator[tuple[int, int]]:
  """Elements of each product's result, and terms of each element's sum."""
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
      yield equation.outvars[0].aval.size, _terms(equation)
    elif name == "cond":
      found = [list(_products(branch.jaxpr)) for branch in params["branches"]]
      platforms = params.get("branches_platforms")
      if platforms and None in platforms:
        found = [found[platforms.index(None)]]
      yield from max(
        found,
        key=lambda products: sum(size * depth for size, depth in products),
      )
    elif name in ("while", "pallas_call"):
      raise ValueError(
        f"function has a {name}, whose work its jaxpr does not tell; count a "
        "reference (implementation='xla') without one"
      )
    else:
      repeats = params["length"] if name == "scan" else 1
      for inner in core.jaxprs_in_params(params):
        yield from ((size * repeats, depth) for size, depth in _products(inner))


def _terms(equation: core.JaxprEqn) -> int:
  left, right = (variable.aval.shape for variable in equation.invars)
  numbers = equation.params["dimension_numbers"]
  if equation.primitive.name == "dot_general":
    return math.prod(left[axis] for axis in numbers[0][0])
  # The kernel is [out, in / groups, height, width] in some order.
  return math.prod(right) // right[numbers.rhs_spec[0]]
