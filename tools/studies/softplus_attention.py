"""Does a loss stay flat beyond the length of training?

"Softplus Attention with Re-weighting" (arXiv 2501.13428) says so of LSSAR with
p = 15, to 8 and 16 times the length, and that softmax rises, and LSSA without
the re-weighting as well. Measured: nats a byte at 1, 2, 4, 8 and 16 times the
length, of the same targets. The controls are softmax, and softmax of unit
queries and keys with LSSA's scale, ln(head size) ln(keys seen): what the scale
does by itself. Rows of 64 bytes and two layers, so that all can be trained.
"""

from collections.abc import Mapping, Sequence

import ml_collections

from configs import language
from interpret import length_extrapolation
from tools import study

FACTORS = (1, 2, 4, 8, 16)
_COSINES = {"qk_norm": "unit", "scale_by": "log_length"}


def _sharpened(power: float) -> dict:
  return {
    **_COSINES,
    "normalizer": "reweighted_softplus",
    "normalizer_options": {"power": power},
  }


# Options of the mixer "full".
ROWS = {
  "softmax": {},
  "softmax, log-length scale": _COSINES,
  "LSSA": {**_COSINES, "normalizer": "softplus"},
  "LSSAR, p = 3": _sharpened(3.0),
  "LSSAR, p = 15": _sharpened(15.0),
}


def rows(variant: str) -> Sequence[study.Row]:
  """The kinds of attention."""
  return [
    study.Row(name, _config(options, variant)) for name, options in ROWS.items()
  ]


def _config(options: Mapping, variant: str) -> ml_collections.ConfigDict:
  config = language.get_config("study")
  config.model.depth = 2
  config.data.length = 64
  if options:
    config.model.mixer_options = {"full": dict(options)}
  return study.shrunk(config) if variant == "test" else config


def measure(run: study.Run) -> dict[str, float]:
  """The loss by length."""
  losses = length_extrapolation.losses(
    run.task.model, run.variables, run.config.data, factors=FACTORS
  )
  return {f"loss_{factor}": losses[factor] for factor in FACTORS}


def tables(lines: Sequence[Mapping]) -> dict[str, str]:
  """Loss by length, and how much it rises to the longest."""
  table = []
  for name in ROWS:
    own = [line for line in lines if line["row"] == name]
    values = [[line[f"loss_{n}"] for line in own] for n in FACTORS]
    rise = [b - a for a, b in zip(values[0], values[-1], strict=True)]
    table.append(
      [name, *(study.spread(v, 3) for v in values), study.spread(rise, 3)]
    )
  header = ("attention", *(f"{n} x" for n in FACTORS), "rise")
  return {"softplus_attention": study.markdown(header, table)}
