"""The two layouts of a transformer's parameters: layers apart, or stacked."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def stack_layers(tree: Mapping[str, Any], pattern: int = 1) -> dict[str, Any]:
  """Turns parameters, or a cache, into those of `scan_layers`.

  Args:
    tree: with "layer_0", "layer_1", ... beside others; no variables, but one
      collection of them.
    pattern: length of the model's `mixers`.

  Returns:
    The same with "layers", in which "layer_0" to the last of the pattern have
    the arrays of all repeats, stacked along a new first axis.

  Raises:
    ValueError: if the pattern does not divide the layers.
  """
  own = sorted(
    (name for name in tree if name.startswith("layer_")),
    key=lambda name: int(name.removeprefix("layer_")),
  )
  if not own or len(own) % pattern:
    raise ValueError(
      f"pattern is {pattern}; it must divide the layers of the tree, of which "
      f"there are {len(own)}"
    )
  stacked = {
    f"layer_{i}": jax.tree.map(
      lambda *leaves: jnp.stack(leaves),
      *(tree[name] for name in own[i::pattern]),
    )
    for i in range(pattern)
  }
  rest = {name: tree[name] for name in tree if name not in own}
  return {**rest, "layers": stacked}


def unstack_layers(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Turns parameters, or a cache, of `scan_layers` into those of a plain loop.

  Raises:
    ValueError: if the tree has no "layers".
  """
  if "layers" not in tree:
    raise ValueError(
      f"tree has {sorted(tree)}; one of stacked layers has 'layers'"
    )
  stacked = tree["layers"]
  repeats = len(jax.tree.leaves(stacked)[0])
  plain = {
    f"layer_{repeat * len(stacked) + i}": jax.tree.map(
      lambda x, repeat=repeat: x[repeat], stacked[f"layer_{i}"]
    )
    for repeat in range(repeats)
    for i in range(len(stacked))
  }
  return {**{name: tree[name] for name in tree if name != "layers"}, **plain}


def empty_caches(
  of: Callable[[int], Mapping[str, Any]],
  depth: int,
  pattern: int,
  *,
  stacked: bool,
) -> dict[str, Any]:
  """Returns the caches of all layers in one of the layouts.

  Args:
    of: gives the cache of a layer, by its number.
    depth: number of layers.
    pattern: length of the model's `mixers`.
    stacked: whether it is that of `scan_layers`.
  """
  own = {f"layer_{i}": of(i) for i in range(pattern if stacked else depth)}
  if not stacked:
    return own
  repeats = depth // pattern
  return {
    "layers": jax.tree.map(
      lambda x: jnp.broadcast_to(x, (repeats, *x.shape)), own
    )
  }


def written(caches: Mapping[str, Any]) -> jax.Array:
  """Returns how many tokens were written to caches of all layers."""
  if "layers" in caches:
    return caches["layers"]["layer_0"]["index"][0]
  return caches["layer_0"]["index"]
