"""Head ablation: what a model does without a head of attention.

Three ways to be without it. "zero": the head gives nothing, as if its slice of
the output projection were zero. "mean": it gives what it gives on average over
tokens, so that it says nothing of this one (as in arXiv 2211.00593). "uniform":
it attends to all keys that it may see alike, and so still says what there is,
but not where. For single heads see "Are Sixteen Heads Really Better than One?"
(arXiv 1905.10650).
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import interpret
from interpret import head_edits, tap_names
from models import registry

# Name: the tap beneath a mixer that an ablation edits, and its axis of heads.
# Head outputs of images are [batch, height, width, heads, dim].
KINDS = {
  "zero": ("head_outputs", -2),
  "mean": ("head_outputs", -2),
  "uniform": ("attention_weights", -3),
}
# Of what an edit finds as given, under which the means of heads are.
MEANS = "ablation_means"


class Sweep(NamedTuple):
  """What a metric is without each head.

  Attributes:
    names: of the taps, one a layer: the first axis of the grid.
    grid: [layers, heads, ...], of the model without that head alone.
    baseline: [...], of the whole model.
  """

  names: tuple[str, ...]
  grid: jax.Array
  baseline: jax.Array

  def changes(self) -> jax.Array:
    """What the metric gains without each head, [layers, heads, ...]."""
    return self.grid - self.baseline[None, None]


def zeroed(head_outputs: jax.Array, heads: jax.Array) -> jax.Array:
  """Returns [batch, ..., heads, dim] with 0 for heads, bool [heads]."""
  return jnp.where(_each(heads, head_outputs), 0, head_outputs)


def averaged(
  head_outputs: jax.Array, heads: jax.Array, means: jax.Array
) -> jax.Array:
  """Returns head outputs with means in the place of some heads'.

  Args:
    head_outputs: [batch, ..., heads, dim].
    heads: bool [heads], which.
    means: [heads, dim].
  """
  means = jnp.broadcast_to(means.astype(head_outputs.dtype), head_outputs.shape)
  return jnp.where(_each(heads, head_outputs), means, head_outputs)


def edit(
  heads: Iterable[tuple[int, int]],
  kind: str = "zero",
  mixers: str = "layer_{}/mixer",
) -> tuple[tuple[str, "Ablated"], ...]:
  """Returns the edit of `interpret.run` and `edited` that ablates heads.

  It is hashable, and the same for the same heads. That of kind "mean" finds the
  means of `mean_outputs` as given: `given={ablation.MEANS: means}`.

  Args:
    heads: pairs (layer, head).
    kind: a key of KINDS.
    mixers: path of the mixer of a layer; "block_{}/mixer" in a ViT.

  Raises:
    ValueError: if the kind is not known.
  """
  if kind not in KINDS:
    raise registry.unknown("kind of ablation", kind, KINDS)
  by_layer = collections.defaultdict(set)
  for layer, head in heads:
    by_layer[int(layer)].add(int(head))
  found = []
  for layer, own in sorted(by_layer.items()):
    name = f"{mixers.format(layer)}/{KINDS[kind][0]}"
    found.append((name, Ablated(name, kind, tuple(sorted(own)))))
  return tuple(found)


@dataclasses.dataclass(frozen=True)
class Ablated:
  """An edit of one layer's head outputs or map.

  Attributes:
    name: of the value; one of scanned layers does not say which it is of.
    kind: a key of KINDS.
    heads: numbers of heads.
  """

  name: str
  kind: str
  heads: tuple[int, ...]

  def __call__(self, value: jax.Array, site: interpret.Site) -> jax.Array:
    """Returns the value with these heads ablated.

    Raises:
      ValueError: if there is no such head, or means were not given.
    """
    count = value.shape[KINDS[self.kind][1]]
    wrong = [head for head in self.heads if not 0 <= head < count]
    if wrong:
      raise ValueError(
        f"heads: {self.name} has heads from 0 to {count - 1}; there is no "
        f"{wrong[0]}"
      )
    chosen = np.isin(np.arange(count), self.heads)
    means = None
    if self.kind == "mean":
      given = site.given or {}
      if MEANS not in given:
        raise ValueError(
          f"given has no {MEANS!r}, which the edit of {self.name} by "
          "kind='mean' puts in the place of heads; see ablation.mean_outputs"
        )
      means = given[MEANS][self.name]
    return _ablated(self.kind, value, jnp.asarray(chosen), site, means)


def mean_outputs(
  model: nn.Module,
  variables: Mapping[str, Any],
  inputs: Any,
  *,
  tap: str = "layer_*/mixer/head_outputs",
  **options: Any,
) -> dict[str, jax.Array]:
  """What heads give on average over the tokens of a batch.

  Args:
    model: any model with such taps.
    variables: its variables.
    inputs: as `interpret.run` has them.
    tap: pattern of head outputs [batch, ..., heads, dim].
    **options: of `model.apply`; tokens whose `positions` are -1 do not count,
      be they among these or named inputs.

  Returns:
    float32 [heads, dim] by the names of taps.
  """
  known = interpret.list_taps(model, variables, inputs, **options)
  names = tap_names.matching(tap, known)
  _, values = interpret.run(model, variables, inputs, read=names, **options)
  named = inputs if isinstance(inputs, Mapping) else {}
  positions = {**named, **options}.get("positions")
  return collections.OrderedDict(
    (name, _mean(values[name], _real(values[name], positions)))
    for name in names
  )


def sweep(
  model: nn.Module,
  variables: Mapping[str, Any],
  inputs: Any,
  metric: Callable[[Any], jax.Array],
  *,
  kind: str = "zero",
  means: Mapping[str, jax.Array] | None = None,
  mixers: str = "layer_*/mixer",
  batch_size: int = 8,
  **options: Any,
) -> Sweep:
  """Ablates every head alone, and measures.

  All runs are one program, whose compilation the first of them pays for.

  Args:
    model: any model with taps of heads.
    variables: its variables.
    inputs: as `interpret.run` has them.
    metric: from what the model returns to an array; see `interpret.metrics`.
    kind: a key of KINDS.
    means: what `mean_outputs` gave for kind "mean", of other data maybe; of
      these inputs if None.
    mixers: pattern of the paths of mixers, as "block_*/mixer" in a ViT.
    batch_size: how many ablated runs are computed at once.
    **options: of `model.apply`, as `positions=`.

  Raises:
    ValueError: if the kind is not known, no tap fits, layers have different
      numbers of heads, or means lack a layer.
  """
  if kind not in KINDS:
    raise registry.unknown("kind of ablation", kind, KINDS)
  tap, axis = KINDS[kind]
  known = interpret.list_taps(model, variables, inputs, **options)
  names = tap_names.matching(f"{mixers}/{tap}", known)
  count = _count({name: known[name].shape[axis] for name in names})
  if kind != "mean":
    means = dict.fromkeys(names)
  elif means is None:
    tap = f"{mixers}/{tap}"
    means = mean_outputs(model, variables, inputs, tap=tap, **options)
  elif lacking := [name for name in names if name not in means]:
    raise ValueError(f"means have {sorted(means)}, but not {lacking[0]!r}")

  @jax.jit
  def run(variables, inputs, means):
    def ablated(place):
      layer, head = place
      edit = [
        (name, _one(kind, (jnp.arange(count) == head) & (layer == i), mean))
        for i, (name, mean) in enumerate(zip(names, means, strict=True))
      ]
      out, _ = interpret.run(model, variables, inputs, edit=edit, **options)
      return metric(out)

    places = np.ndindex(len(names), count)
    places = jnp.asarray(list(places), jnp.int32)
    grid = jax.lax.map(ablated, places, batch_size=batch_size)
    out, _ = interpret.run(model, variables, inputs, **options)
    return grid, metric(out)

  grid, baseline = run(variables, inputs, [means[name] for name in names])
  grid = grid.reshape(len(names), count, *grid.shape[1:])
  return Sweep(names, grid, baseline)


def _count(heads: Mapping[str, int]) -> int:
  """The number of heads of all layers, by name.

  Raises:
    ValueError: if it is not the same.
  """
  if len(set(heads.values())) > 1:
    raise ValueError(
      f"layers have different numbers of heads, {heads}; choose a pattern of "
      "layers that are alike"
    )
  return next(iter(heads.values()))


def _one(kind: str, chosen: jax.Array, means) -> Callable[..., jax.Array]:
  """The edit of a layer that ablates chosen heads, bool [heads]."""
  return lambda value, site: _ablated(kind, value, chosen, site, means)


def _ablated(kind, value, chosen, site, means) -> jax.Array:
  if kind == "zero":
    return zeroed(value, chosen)
  if kind == "mean":
    return averaged(value, chosen, means)
  # A module that says nothing of it, as a ViT's, hides nothing.
  visible = site.facts.get("visible", jnp.ones((1, 1, 1, 1), bool))
  return head_edits.uniform_heads(value, chosen, visible)


def _each(heads: jax.Array, outputs: jax.Array) -> jax.Array:
  """Brings bool [heads] to the rank of [batch, ..., heads, dim]."""
  return heads.reshape((1,) * (outputs.ndim - 2) + (-1, 1))


def _real(outputs: jax.Array, positions: jax.Array | None) -> jax.Array:
  """Which places [batch, ...] of head outputs are no padding."""
  places = outputs.shape[:-2]
  if positions is None or jnp.shape(positions) != places:
    return jnp.ones(places, bool)
  return jnp.asarray(positions) >= 0


def _mean(outputs: jax.Array, real: jax.Array) -> jax.Array:
  outputs = outputs.astype(jnp.float32)
  kept = jnp.where(real[..., None, None], outputs, 0)
  return kept.sum(range(real.ndim)) / jnp.maximum(real.sum(), 1)
