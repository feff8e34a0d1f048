"""Activation patching: which values carry what makes two runs differ.

A model is run on two inputs. Then it is run on the second once more for each
layer and place, with one value of the first run put in the place of its own; if
that brings back what the first run said, the value carries it. It is the causal
tracing of "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262)
and the patching that "Towards Best Practices of Activation Patching" (arXiv
2309.16042) compares the forms of; which run is clean is the caller's choice.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import interpret
from interpret import tap_names


class Patching(NamedTuple):
  """What patching did to a metric.

  Attributes:
    names: of the taps, the first axis of the grid.
    grid: [names, *sizes of the axes, ...], the metric of the patched runs.
    source: [...], of the run that values are taken from.
    target: [...], of the run that they are put into.
  """

  names: tuple[str, ...]
  grid: jax.Array
  source: jax.Array
  target: jax.Array

  def restored(self) -> jax.Array:
    """The share of the difference that each brought back: 0 none, 1 all."""
    axes = tuple(range(self.grid.ndim - jnp.ndim(self.target)))
    source, target = (
      jnp.expand_dims(x, axes) for x in (self.source, self.target)
    )
    return (self.grid - target) / (source - target)


def patch(
  model: nn.Module,
  variables: Mapping[str, Any],
  source: Any,
  target: Any,
  metric: Callable[[Any], jax.Array],
  *,
  tap: str = "layer_*/hidden_state",
  axes: Sequence[int] = (1,),
  batch_size: int = 8,
  **options: Any,
) -> Patching:
  """Puts values of one run into another, one place after the other.

  All runs are one program, whose compilation the first of them pays for.

  Args:
    model: any model with taps.
    variables: its variables.
    source: inputs of the run that values are taken from, as `interpret.run` has
      them.
    target: those of the run that they are put into, of the same shapes.
    metric: from what the model returns to an array, the same for all runs; see
      `interpret.metrics`.
    tap: pattern of the values to patch, one layer at a time.
    axes: of a value, along which one slice is patched at a time: (1,) of
      [batch, length, width] is a position, (2,) of head outputs [batch, length,
      heads, dim] a head, (1, 2) a head at a position, () the whole.
    batch_size: how many patched runs are computed at once.
    **options: of `model.apply`, the same for both runs, as `positions=`.

  Raises:
    ValueError: if no tap fits, an axis is none of its values', the values of
      layers differ in the sizes of the axes, or the inputs differ in shape.
  """
  _check_inputs(source, target)
  known = interpret.list_taps(model, variables, target, **options)
  names = tap_names.matching(tap, known)
  sizes = _sizes(names, known, axes)
  places = np.array(
    list(itertools.product(range(len(names)), *map(range, sizes))), np.int32
  )

  @jax.jit
  def run(variables, source, target):
    def patched(place):
      layer, *where = place
      edit = [
        (name, _put(values[name], axes, where, layer == i))
        for i, name in enumerate(names)
      ]
      out, _ = interpret.run(model, variables, target, edit=edit, **options)
      return metric(out)

    out, values = interpret.run(model, variables, source, read=names, **options)
    grid = jax.lax.map(patched, jnp.asarray(places), batch_size=batch_size)
    before, _ = interpret.run(model, variables, target, **options)
    return grid, metric(out), metric(before)

  grid, of_source, of_target = run(variables, source, target)
  grid = grid.reshape(len(names), *sizes, *grid.shape[1:])
  return Patching(names, grid, of_source, of_target)


def replaced(
  value: jax.Array,
  other: jax.Array,
  axes: Sequence[int],
  place: Sequence[jax.Array | int],
) -> jax.Array:
  """Returns a value with one slice of another in it.

  Args:
    value: any array.
    other: of the same shape.
    axes: of both.
    place: where on each of the axes.
  """
  here = jnp.ones((1,) * value.ndim, bool)
  for axis, index in zip(axes, place, strict=True):
    shape = [1] * value.ndim
    shape[axis] = value.shape[axis]
    at = jnp.arange(value.shape[axis]) == index
    here = here & at.reshape(shape)
  return jnp.where(here, other.astype(value.dtype), value)


def _put(other, axes, place, here) -> Callable[..., jax.Array]:
  """The edit of a layer, if it is the one whose turn it is."""
  return lambda value, site: jnp.where(
    here, replaced(value, other, axes, place), value
  )


def _sizes(names, known, axes) -> tuple[int, ...]:
  sizes = {}
  for name in names:
    shape = known[name].shape
    if not all(-len(shape) <= axis < len(shape) for axis in axes):
      raise ValueError(
        f"axes={tuple(axes)}: {name} has shape {shape}, so they must be from "
        f"0 to {len(shape) - 1}"
      )
    sizes[name] = tuple(shape[axis] for axis in axes)
  if len(set(sizes.values())) > 1:
    raise ValueError(
      f"axes={tuple(axes)} have other sizes in other layers, {sizes}; choose a "
      "pattern of layers that are alike, or other axes"
    )
  return sizes[names[0]]


def _check_inputs(source, target) -> None:
  shapes = [
    jax.tree.map(lambda x: jnp.shape(x), inputs) for inputs in (source, target)
  ]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"source has shape {shapes[0]} and target {shapes[1]}; values of one run "
      "go into the other, so they must be the same"
    )
