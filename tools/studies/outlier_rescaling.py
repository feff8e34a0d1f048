"""Outlier-driven rescaling (arXiv 2601.22966): who needs outliers, who not.

Claimed: a few channels of the residual stream are large because that is how a
norm shrinks the others; a network with an explicit gate of its norms has no
need of them, and loses less with four bits. The order of the largest activation
is base > gated attention (GA) > GA + PreAffine and GA + GatedNorm (table 1).
Against: the plain model and GA alone, at the same seeds; parameters are added,
as the table shows, and not taken from elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from configs import language
from interpret import quantization, statistics
from tools import study, study_text

_GATED = {"output_gate": "elementwise"}
_MODELS = {
  "base": {},
  "GA": _GATED,
  "GA + PreAffine": {**_GATED, "norm": "pre_affine_rms_norm"},
  "GA + GatedNorm": {**_GATED, "norm": "gated_rms_norm"},
}
_ROWS = 64


def rows(variant: str) -> Sequence[study.Row]:
  """The four models."""
  made = []
  for name, fields in _MODELS.items():
    config = language.get_config("study")
    config.model.update(fields)
    if variant == "test":
      config = study.shrunk(config, depth=1)
    made.append(study.Row(name, config))
  return made


def measure(run: study.Run) -> dict[str, float]:
  """Outliers and sinks, and what four bits cost, on rows of evaluation."""
  batch = study_text.some(study_text.rows(run), _ROWS)
  places = study_text.places(batch)
  model = run.task.model
  result = jax.jit(
    lambda variables, tokens, places: statistics.summary(
      model, variables, tokens, **places
    )
  )(run.variables, batch["tokens"], places)
  measured = {name: float(value) for name, value in result.items()}

  def loss() -> float:
    # Traced anew, within what is around it.
    sums = jax.jit(lambda *args: run.task.evaluate_step(*args))(
      run.variables, batch
    )
    return float(sums["loss"] / sums["weight"])

  exact = loss()
  for scheme in quantization.SCHEMES:
    with quantization.w4a4(scheme):
      measured[f"{scheme}_gap"] = loss() - exact
  return measured


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Outliers, sinks, and gaps in nats."""
  columns = {
    "loss": ("loss", 4),
    "largest": ("largest_activation", 1),
    "largest channel by median": ("residual_sinks", 2),
    "smallest norm weight": ("smallest_norm_weight", 3),
    "first token": ("first_token_attention", 3),
    "W4A4 gap, int4": ("int4_gap", 4),
    "W4A4 gap, NVFP4": ("nvfp4_gap", 4),
  }
  made = []
  for name in _MODELS:
    own = [line for line in lines if line["row"] == name]
    made.append(
      [
        name,
        f"{own[0]['parameters']:,}",
        *(
          study.spread([line[field] for line in own], digits)
          for field, digits in columns.values()
        ),
      ]
    )
  header = ("model", "parameters", *columns)
  return {"outlier rescaling": study.markdown(header, made)}
