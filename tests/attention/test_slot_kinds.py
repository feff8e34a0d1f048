"""The cover of slots leaves no pair out, and needs few calls."""

import itertools

import pytest

from tests.attention import slot_kinds

KINDS = {
  "scale": slot_kinds.SCALES,
  "mod": slot_kinds.MODS,
  "mask": slot_kinds.MASKS,
  "normalizer": slot_kinds.NORMALIZERS,
  "finish": slot_kinds.FINISHES,
}
ITEMS = [(slot, kind) for slot, kinds in KINDS.items() for kind in kinds]
REFUSED = {
  frozenset([("scale", "array"), ("mod", kind)])
  for kind in ("factors", "distance")
}


@pytest.mark.parametrize(
  ("fitting", "seen_as", "refused", "most"),
  [
    (lambda kinds: kinds, lambda item: item, set(), 40),
    (slot_kinds.for_kernels, slot_kinds.as_kernels_see, REFUSED, 11),
  ],
  ids=["reference", "kernels"],
)
def test_all_pairs_are_there(fitting, seen_as, refused, most):
  chosen = slot_kinds.cover(fitting, seen_as)
  there = {item for kinds in chosen for item in kinds.items()}
  assert there == {*ITEMS, slot_kinds.NO_MASK}
  together = {
    frozenset([seen_as(a), seen_as(b)])
    for kinds in chosen
    for a, b in itertools.combinations(kinds.items(), 2)
  }
  for (a, left), (b, right) in itertools.combinations(KINDS.items(), 2):
    for x, y in itertools.product(left, right):
      pair = frozenset([seen_as((a, x)), seen_as((b, y))])
      if None not in pair:
        assert (pair in together) != (pair in refused), (a, x, b, y)
  assert len(chosen) <= most
  assert slot_kinds.cover(fitting, seen_as) == chosen
