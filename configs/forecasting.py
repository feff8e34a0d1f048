"""Forecasts of chaotic systems, with any combination of parts.

  python train.py --config=configs/forecasting.py --workdir=runs/forecasting

A variant is a system, or a system and a row of the grid of
"Deconstructing Recurrence, Attention, and Gating" (arXiv 2410.02654), as
`lorenz96-rhn_attention_coupled`. Systems:
- `lorenz96_small` (the default): a ring of 8 numbers; minutes on two cores.
- `kuramoto_sivashinsky_small`: 64 points on a ring of length 22; likewise.
- `lorenz96`: a ring of 40 numbers.
- `lorenz96_multiscale`: 8 slow numbers, seen without the 64 faster ones.
- `kuramoto_sivashinsky`: 512 points on a ring of length 100.

Rows of the grid (GRID) are `lstm`, `gru` or `rhn`, with `_attention` or not,
and then none or one of the gates of GATES; `transformer` or
`recurrent_transformer`, and one of the gates. All of a system have as many
parameters, within 5 % (`fit_width`). Without a row it is `gru`.

The paper's recipe could not be read. Batch size, Adam, its learning rate and
the noise of ten per mille are those of the reference code of the authors for
Lorenz 96 (`pvlachas/RNN-RC-Chaos`); budgets and schedule are ours.
"""

import ml_collections

from configs import common

# As `merging.KINDS`, without "none".
GATES = ("additive", "learned_rate", "input_dependent", "coupled")
_CELLS = ("lstm", "gru", "rhn")


def get_config(variant: str = "lorenz96_small") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  system, _, row = variant.partition("-")
  common.check_variant("forecasting", system, VARIANTS)
  if row:
    common.check_variant(f"forecasting.py:{system}-<row", row, GRID)
  config = common.get_config("forecasting")
  config.noise = 0.01
  config.batch_size = 32
  config.eval_batch_size = 100
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.final_learning_rate = 1e-5
  config.optimizer.warmup = "5 percent"
  config.optimizer.clip_norm = 1.0
  budget, heads = VARIANTS[system](config)
  _set_row(config, row or "gru", budget, heads)
  return config


def _set_row(
  config: ml_collections.ConfigDict, row: str, budget: int, heads: int
) -> None:
  """Gives a config the model of a row, and the data in its order."""
  fields = GRID[row] | {"heads": heads, "window": config.data.length}
  config.model = ml_collections.ConfigDict(fields)
  # The models take what others carry out of a batch, or windows from anywhere.
  stateless = row.startswith("transformer")
  config.data.order = "shuffled" if stateless else "consecutive"
  size = config.data.options.size
  config.model.width = fit_width(config.model.to_dict(), size, budget)


def fit_width(fields: dict, size: int, budget: int) -> int:
  """The multiple of the heads that comes nearest to a number of parameters.

  Args:
    fields: of the model, without the width.
    size: numbers of a state.
    budget: how many parameters it shall have.
  """
  heads = fields["heads"]
  widths = range(heads, 8192, heads)
  return min(widths, key=lambda w: abs(parameters(fields, size, w) - budget))


def parameters(fields: dict, size: int, width: int) -> int:
  """How many a model has, as `models.forecasting` makes them.

  Args:
    fields: of the model, those of GRID, `heads` and `window`.
    size: numbers of a state.
    width: of the stream.
  """
  square, norm = width**2, 2 * width
  gates = {
    "none": 0,
    "additive": 0,
    "learned_rate": width,
    "input_dependent": 2 * (square + width),
    "coupled": square + width,
  }
  micro_steps = fields.get("micro_steps", 3)
  cells = {
    "none": 0,
    "lstm": 8 * square + 4 * width,
    "gru": 6 * square + 4 * width,
    "rhn": 2 * square + micro_steps * (2 * square + norm),
  }
  cell_gate = fields.get("cell_gate", "none")
  layer = cells[fields.get("cell", "none")] + gates[cell_gate]
  layer += norm * (cell_gate != "none")
  gate = gates[fields.get("gate", "additive")] + norm
  if fields.get("attention"):
    biases = fields["heads"] * fields["window"]
    layer += 4 * (square + width) + biases + gate
  if hidden := fields.get("feed_forward", 0):
    layer += 2 * hidden * square + (hidden + 1) * width + gate
  ends = size * width + width + width * size + size
  skips = cell_gate != "none" or "attention" in fields or hidden > 0
  return ends + norm * skips + fields.get("depth", 1) * layer


def _grid() -> dict[str, dict]:
  """The model of each row, but for its width and window."""
  rows = {}
  for cell in _CELLS:
    for attention in ("", "_attention"):
      for gate in ("none", *GATES):
        fields = {"name": f"forecasting_{cell}", "cell": cell}
        if attention:
          # Without a gate of the cell, attention is merged as a residual.
          merge = "additive" if gate == "none" else gate
          fields |= {"attention": True, "gate": merge}
        suffix = "" if gate == "none" else f"_{gate}"
        rows[f"{cell}{attention}{suffix}"] = {**fields, "cell_gate": gate}
  for name, recurrence in (
    ("transformer", False),
    ("recurrent_transformer", True),
  ):
    for gate in GATES:
      rows[f"{name}_{gate}"] = {
        "name": "forecasting_transformer",
        "attention": True,
        "feed_forward": 4,
        "depth": 2,
        "gate": gate,
        "recurrence": recurrence,
      }
  return rows


GRID = _grid()


# What systems add: the number of parameters, and of heads.
_Sizes = tuple[int, int]


def _lorenz96_small(config: ml_collections.ConfigDict) -> _Sizes:
  config.data.options.update(size=8, forcing=8.0, step=0.01, every=5)
  config.data.update(trajectories=32, states=2000, length=16)
  config.data.update(warm_up=64, horizon=200)
  # As `input_pipeline.dynamics.lyapunov` finds it, here and below.
  config.lyapunov_exponent = 1.59
  config.optimizer.learning_rate = 3e-3
  common.schedule(config, steps=1500, every=500)
  return 30_000, 2


def _kuramoto_sivashinsky_small(config: ml_collections.ConfigDict) -> _Sizes:
  config.data.system = "kuramoto_sivashinsky"
  config.data.options.update(size=64, length=22.0, step=0.25, every=4)
  config.data.options.transient = 200.0
  config.data.update(trajectories=32, states=1000, length=16)
  config.data.update(warm_up=64, horizon=200)
  config.lyapunov_exponent = 0.05
  config.optimizer.learning_rate = 3e-3
  common.schedule(config, steps=1500, every=500)
  return 50_000, 2


def _lorenz96(config: ml_collections.ConfigDict) -> _Sizes:
  config.data.options.update(size=40, forcing=8.0, step=0.01)
  config.data.update(trajectories=64, states=2000, length=32)
  config.data.update(warm_up=1250, horizon=1000)
  config.lyapunov_exponent = 1.66
  common.schedule(config, steps=40_000, every=2000)
  return 2_000_000, 4


def _lorenz96_multiscale(config: ml_collections.ConfigDict) -> _Sizes:
  config.data.options.update(size=8, fast=8, forcing=20.0, step=0.005)
  config.data.system = "lorenz96_multiscale"
  config.data.update(trajectories=64, states=2000, length=32)
  config.data.update(warm_up=1000, horizon=1000)
  # The greatest exponent, 18, is that of the fast numbers, which nobody
  # forecasts, so times are plain.
  common.schedule(config, steps=40_000, every=2000)
  return 1_000_000, 4


def _kuramoto_sivashinsky(config: ml_collections.ConfigDict) -> _Sizes:
  config.data.options.update(size=512, length=100.0, step=0.25)
  config.data.system = "kuramoto_sivashinsky"
  config.data.update(trajectories=64, states=2000, length=32)
  config.data.update(warm_up=500, horizon=1000)
  config.lyapunov_exponent = 0.086
  common.schedule(config, steps=40_000, every=2000)
  return 5_000_000, 4


VARIANTS = {
  "lorenz96_small": _lorenz96_small,
  "kuramoto_sivashinsky_small": _kuramoto_sivashinsky_small,
  "lorenz96": _lorenz96,
  "lorenz96_multiscale": _lorenz96_multiscale,
  "kuramoto_sivashinsky": _kuramoto_sivashinsky,
}
