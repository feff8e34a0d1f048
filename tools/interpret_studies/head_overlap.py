"""Whether heads found twice are the same: other seeds, tunings, methods."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from etils import epath

from interpret import head_attribution
from tools import study_command
from tools.interpret_studies import safety_heads

TITLE = "Overlap of the heads of a toy refusal (2410.13708)"
TEXT = """\
The refusers of the study above, 32 heads each, are scored twice, and rows say
what differs: "tuning" is a second refuser from the same base, tuned on other
prompts; "seed" one whose base has other initial weights and data, the next of
the three seeds, where heads of one number have nothing in common but their
layer; "ablation" has heads scaled to 0 in the place of uniform; "method" is
Sahara against Ships, in one model. `of_1`, `of_3` and `of_5` are how many of so
many first heads are the same, as shares, and chance gives 3 %, 9 % and 16 %;
`correlation` is Spearman's, over heads, of the scores of single heads, of which
chance gives 0. `layers` is that of the mean scores of layers. The paper reports
that ten heads of 1,024 by the two ablations hardly overlap, and that two models
with the same base overlap strongly.
"""
COLUMNS = (
  ("of_1", ".0%"),
  ("of_3", ".0%"),
  ("of_5", ".0%"),
  ("correlation", ".2f"),
  ("layers", ".2f"),
)
_COUNTS = (1, 3, 5)


class _Found(NamedTuple):
  """Where heads are looked for, and how; see `safety_heads.find_heads`."""

  model: str = "first"
  by: str = "kl"
  kind: str = "uniform"
  later: int = 0


# What is held beside what, but for seeds.
_PAIRS = {
  "tuning, Ships": (_Found(), _Found(model="second")),
  "tuning, Sahara": (
    _Found(by="queries"),
    _Found(model="second", by="queries"),
  ),
  "seed, Ships": (_Found(), _Found(later=1)),
  "seed, Sahara": (_Found(by="queries"), _Found(by="queries", later=1)),
  "ablation, Ships": (_Found(), _Found(kind="scale")),
  "ablation, Sahara": (
    _Found(by="queries"),
    _Found(by="queries", kind="scale"),
  ),
  "method": (_Found(), _Found(by="queries")),
}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows and what they compare; of a test, one."""
  names = list(_PAIRS) if variant == "full" else ["ablation, Ships"]
  pairs = [(name, [each._asdict() for each in _PAIRS[name]]) for name in names]
  return [(name, {"pair": pair}) for name, pair in pairs]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Finds heads twice and compares them.

  Args:
    folder: where trained models are kept.
    name: of the row.
    options: of `rows`.
    seed: of the first model.
    variant: "full" or "test".

  Returns:
    What COLUMNS names, of sizes that the model has heads for.
  """
  del name
  (heads, scores), (others, other_scores) = (
    safety_heads.find_heads(
      folder,
      found.model,
      found.by,
      found.kind,
      (seed + found.later) % len(study_command.SEEDS),
      variant,
    )
    for found in (_Found(**each) for each in options["pair"])
  )
  result = {
    f"of_{count}": head_attribution.overlap(heads[:count], others[:count])
    for count in _COUNTS
    if count <= len(heads)
  }
  spearman = lambda one, other: float(
    scipy.stats.spearmanr(np.ravel(one), np.ravel(other)).statistic
  )
  result["correlation"] = spearman(scores, other_scores)
  if len(scores) > 1:
    result["layers"] = spearman(scores.mean(1), other_scores.mean(1))
  return result
