"""What can fill the five slots, and few fillings with every pair among them.

`cover()` is deterministic; `slots.draw_slots` makes calls of what it gives.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SCALES = ("default", "entropy", "log length", "heads", "queries", "all")
MODS = ("bias", "factors", "distance", "alibi", "cap", "table", "function")
MASKS = (
  "causal",
  "sliding",
  "padding",
  "segments",
  "positions",
  "dense",
  "function",
  "grid",
  "blocks",
)
NORMALIZERS = (
  "softmax",
  "sink",
  "softplus",
  "reweighted",
  "sigmoid",
  "affine",
)
FINISHES = ("head gate", "element gate", "value sum")
NO_MASK = ("mask", "none")


class Kinds(NamedTuple):
  """What is in the slots, by names of the constants above, in order."""

  scale: str
  mods: tuple[str, ...]
  masks: tuple[str, ...]
  normalizer: str
  finishes: tuple[str, ...]

  def __str__(self):
    parts = (self.scale, *self.mods, *self.masks, self.normalizer)
    return ", ".join((*parts, *self.finishes))

  def items(self) -> list[tuple[str, str]]:
    """Returns (slot, kind) of all that is there; no mask is a kind as well."""
    return [
      ("scale", self.scale),
      *(("mod", kind) for kind in self.mods),
      *(("mask", kind) for kind in self.masks),
      *(() if self.masks else (NO_MASK,)),
      ("normalizer", self.normalizer),
      *(("finish", kind) for kind in self.finishes),
    ]


def draw_kinds(rng: np.random.Generator) -> Kinds:
  """Draws what is in the slots: much, so that few draws hold many pairs."""

  def some(kinds, least, most):
    chosen = rng.permutation(len(kinds))[: rng.integers(least, most + 1)]
    return tuple(kinds[i] for i in chosen)

  def one(kinds):
    return kinds[rng.integers(len(kinds))]

  return Kinds(
    scale=one(SCALES),
    mods=some(MODS, 2, 4),
    masks=some(MASKS, 2, 4) if rng.integers(8) else (),
    normalizer=one(NORMALIZERS),
    finishes=some(FINISHES, 1, 2),
  )


def as_kernels_see(item: tuple[str, str]) -> tuple[str, str] | None:
  """Returns what stands for a kind of a slot in the pairs that kernels need.

  A number is a factor of the plan whatever its formula, an array one more
  modification. All weights but a sigmoid are those of a softmax, before which
  there may be one more modification, and after which something is added: a
  sink, or the sum of values, which is a finish as well.
  """
  slot, kind = item
  if slot == "finish":
    return None
  if slot == "scale":
    return slot, "number" if kind in ("default", "entropy") else "array"
  if slot == "normalizer":
    return slot, "sigmoid" if kind == "sigmoid" else "softmax"
  return item


def for_kernels(kinds: Kinds) -> Kinds:
  """Returns the same without what kernels refuse, and without repetitions.

  Refused are factored biases after what does not add, such as a scale that is
  an array. The reweighted softplus goes through all kernels twice, and the sum
  of values through two more.
  """
  factored = ("factors", "distance")
  mods = sorted(kinds.mods, key=lambda kind: kind not in factored)
  if as_kernels_see(("scale", kinds.scale))[1] == "array":
    mods = [kind for kind in mods if kind not in factored]
  masks, finishes = kinds.masks, kinds.finishes
  if kinds.normalizer == "reweighted":
    mods, masks = mods[:1], masks[:1] or ("causal",)
  if kinds.normalizer in ("reweighted", "affine"):
    finishes = finishes[:1] if finishes[0] != "value sum" else ("head gate",)
  return kinds._replace(mods=tuple(mods), masks=masks, finishes=finishes)


def pairs(kinds: Kinds, seen_as: Callable) -> set[frozenset]:
  """Returns all pairs of kinds of two slots, and each kind by itself."""
  items = kinds.items()
  seen = map(seen_as, (item for item in items if item != NO_MASK))
  both = itertools.combinations(filter(None, seen), 2)
  return {frozenset([item]) for item in items} | {
    frozenset(pair) for pair in both if pair[0][0] != pair[1][0]
  }


def cover(
  fitting: Callable = lambda kinds: kinds,
  seen_as: Callable = lambda item: item,
) -> list[Kinds]:
  """Returns few fillings of the slots that have all pairs of kinds together.

  Each next one is the best of a thousand that are drawn, always the same.

  Args:
    fitting: makes of kinds those that can be tested.
    seen_as: see `as_kernels_see`; each kind is there at least once in any case.
  """
  rng = np.random.default_rng(0)
  drawn = {}
  for _ in range(1000):
    kinds = fitting(draw_kinds(rng))
    drawn[kinds] = pairs(kinds, seen_as)
  missing = set().union(*drawn.values())
  chosen = []
  while missing:
    chosen.append(max(drawn, key=lambda kinds: len(drawn[kinds] & missing)))
    missing -= drawn[chosen[-1]]
  return chosen
