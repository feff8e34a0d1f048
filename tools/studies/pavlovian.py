"""Attention as conditioning: capacity, redundancy, depth, learning rules.

Claimed (arXiv 2508.08289, of which the abstracts were read; predictions are
reconstructed): a head of linear attention holds of the order of sqrt(d)
associations for certain and of d on average, redundant heads and depth trade
for each other, and the delta rule, which is that of Rescorla and Wagner, is the
better one. Measured: exponents of capacity over random draws, the error of a
sum over layers of means over heads against e sqrt(layers / heads), and
experiments on conditioning by each rule. Control: contiguity, the sum of linear
attention, which blocks nothing. Nothing is trained.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from interpret import capacity, conditioning
from tools import study

_DIMS = (32, 64, 128, 256)
_DRAWS = 30
_RATE, _TRIALS = 0.2, 20
# Layers and heads, with 64 associations of 64 channels in each.
_DEPTHS = ((1, 1), (1, 4), (1, 8), (4, 1), (8, 8))
_RULES = {
  "Hebb": conditioning.hebb,
  "trace, decay 0.9": conditioning.trace,
  "delta (Rescorla-Wagner)": conditioning.delta,
  "Oja": conditioning.oja,
}
_DESIGNS = {
  "acquisition, A": (conditioning.acquisition(_TRIALS), 0),
  "extinction, A": (conditioning.extinction(_TRIALS, _TRIALS), 0),
  "blocking, B": (conditioning.blocking(_TRIALS, _TRIALS), 1),
  "overshadowing, B": (conditioning.overshadowing(_TRIALS), 1),
}


def rows(variant: str) -> Sequence[study.Row]:
  """All that is drawn and computed, of no model."""
  del variant  # There is no model to make smaller.
  return [study.Row("simulation", None)]


def measure(run: study.Run) -> dict[str, float]:
  """Capacities, errors of depths, and strengths after experiments."""
  key = jax.random.key(run.seed)
  found = {}
  for dim in _DIMS:
    # Enough for the average case, 1 + d / 4 associations.
    shape = (_DRAWS, dim // 2, dim)
    keys, values = (
      capacity.random_units(jax.random.fold_in(key, dim + i), shape)
      for i in (0, 1)
    )
    worst = jax.jit(capacity.worst_interference)(keys)
    error = jax.jit(jax.vmap(capacity.root_mean_square_error))(keys, values)
    found[f"worst {dim}"] = capacity.capacity(worst, 1.0)
    found[f"average {dim}"] = capacity.capacity(error, 0.5)
  for kind in ("worst", "average"):
    found[f"slope {kind}"] = capacity.slope(
      np.array(_DIMS), [found[f"{kind} {dim}"] for dim in _DIMS]
    )
  for layers, heads in _DEPTHS:
    shape = (layers, heads, 64, 64)
    first, second = jax.random.split(jax.random.fold_in(key, heads))
    keys = capacity.random_units(first, shape)
    values = capacity.random_units(second, (layers, 64, 64))
    error = jax.jit(capacity.residual_error)(keys, values)
    found[f"error {layers} {heads}"] = float(error)
  tests = np.eye(2, dtype=np.float32)
  for name, rule in _RULES.items():
    for design, (trials, cue) in _DESIGNS.items():
      strengths = jax.jit(rule)(*trials, tests, _RATE)
      found[f"{name}: {design}"] = float(strengths[-1, cue, 0])
  return found


def tables(lines: Sequence[Mapping]) -> dict[str, str]:
  """Capacity by width, errors by depth and heads, strengths by rule."""

  def shown(name, digits):
    return study.spread([line[name] for line in lines], digits)

  capacities = [
    [
      str(dim),
      shown(f"worst {dim}", 1),
      shown(f"average {dim}", 1),
      f"{1 + dim / 4:g}",
    ]
    for dim in _DIMS
  ]
  slopes = [shown(f"slope {kind}", 2) for kind in ("worst", "average")]
  capacities.append(["exponent", *slopes, ""])
  depths = [
    [
      str(layers),
      str(heads),
      shown(f"error {layers} {heads}", 3),
      f"{np.sqrt(63 / 64 * layers / heads):.3f}",
    ]
    for layers, heads in _DEPTHS
  ]
  strengths = [
    [name, *(f"{lines[0][f'{name}: {design}']:.4f}" for design in _DESIGNS)]
    for name in _RULES
  ]
  return {
    "capacity": study.markdown(
      ["channels d", "worst case", "average case", "1 + d / 4"], capacities
    ),
    "capacity depth": study.markdown(
      ["layers", "heads", "error", "e sqrt(layers / heads)"], depths
    ),
    "conditioning": study.markdown(["rule", *_DESIGNS], strengths),
  }
