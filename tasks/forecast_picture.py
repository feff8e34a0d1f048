"""The picture of a forecast beside what came."""

import numpy as np

from training import summary


def write(
  workdir: str, truth: np.ndarray, made: np.ndarray, *, unit: float, label: str
) -> str:
  """Draws truth, forecast and their difference over time.

  Args:
    workdir: of a run; the file goes there.
    truth: [time, size].
    made: likewise.
    unit: of one step, in `label`.
    label: of the axis of time.

  Returns:
    The file's name.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 5), layout="constrained")
  panels = figure.subplots(3, 1, sharex=True)
  limit = float(np.abs(truth).max())
  shown = {"truth": truth, "forecast": made, "difference": made - truth}
  extent = (0, len(truth) * unit, -0.5, truth.shape[1] - 0.5)
  for panel, (name, states) in zip(panels, shown.items(), strict=True):
    # What is not finite stays blank.
    image = panel.imshow(
      np.ma.masked_invalid(states.T),
      aspect="auto",
      origin="lower",
      cmap="RdBu_r",
      vmin=-limit,
      vmax=limit,
      extent=extent,
      interpolation="nearest",
    )
    panel.set_ylabel(name)
  panels[-1].set_xlabel(label)
  figure.colorbar(image, ax=panels)
  summary.write_picture(
    workdir, "forecast.png", lambda file: figure.savefig(file, dpi=100)
  )
  return "forecast.png"
