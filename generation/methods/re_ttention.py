"""Re-ttention (arXiv 2505.22918): which steps are full, and which a window."""

import flax.linen as nn

from attention import checks
from generation import methods

KINDS = ("reshaped", "window")


def re_ttention(
  model: nn.Module,
  steps: int,
  *,
  full_steps: int = 5,
  period: int = 5,
  keep: float = 0.03125,
  ramp: float = 0.04,
  most: float | None = None,
  kind: str = "reshaped",
  scale_by: str = "constant",
) -> "methods.Method":
  """Full steps at first, then one in `period` that keeps its statistics.

  The paper has 5 of 20 steps (PixArt) and 15 of 50 (CogVideoX) full at first,
  and a period of 5; it stores in the steps that the period divides, and these
  are the same as here, where the first step behind the full ones stores.

  Args:
    model: that was trained.
    steps: of sampling.
    full_steps: the first ones, with attention as it is.
    period: of the steps behind them, one in so many is full and stored.
    keep: see `models.attends.reshaped_window`, as `ramp` and `most`.
    ramp: what the ratio grows by after a sparse step.
    most: where it ends.
    kind: "reshaped", or "window", the same steps without the correction.
    scale_by: "constant" or "entropy", see `models.attends.reshaped_window`.

  Raises:
    ValueError: if there are not so many steps, or for another `kind`.
  """
  checks.choice("kind", kind, KINDS)
  methods.check_first("full_steps", full_steps, steps)
  checks.whole("period", period, 1)

  def changed(step):
    options = {"step": step, "keep": keep, "ramp": ramp, "most": most}
    options["scale_by"] = scale_by
    return methods.with_attend(model, "reshaped_window", options)

  full = methods.scaled(model, scale_by)
  # In comparison nothing is stored.
  store = full if kind == "window" else changed("store")
  sparse = changed("window" if kind == "window" else "sparse")
  which = tuple(
    0 if n < full_steps else 1 if (n - full_steps) % period == 0 else 2
    for n in range(steps)
  )
  return methods.Method((full, store, sparse), which)
