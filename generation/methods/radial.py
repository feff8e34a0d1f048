"""Radial Attention while sampling videos (arXiv 2506.19852)."""

import flax.linen as nn

from generation import methods


def radial(
  model: nn.Module,
  steps: int,
  *,
  decay: float = 1.0,
  sink: bool = True,
  block_size: int = 128,
  dense_width: int = 128,
  dense_steps: int = 0,
  dense_layers: int = 0,
  scale_by: str = "constant",
) -> "methods.Method":
  """Attends by radial masks but for the first steps and the first layers.

  Args:
    model: a diffusion transformer of videos.
    steps: of sampling.
    decay, sink, block_size, dense_width: see `models.attends.radial`.
    dense_steps: steps that attend to all; steps of the solver, not times.
    dense_layers: layers that do so at each step.
    scale_by: "constant" or "entropy", see `models.attends.radial`.

  Raises:
    ValueError: if there are not so many steps.
  """
  changed = methods.with_attend(
    model,
    "radial",
    {
      "decay": decay,
      "sink": sink,
      "block_size": block_size,
      "dense_width": dense_width,
      "scale_by": scale_by,
    },
    dense_layers=dense_layers,
  )
  return methods.full_first(
    model, changed, steps, dense_steps, scale_by, name="dense_steps"
  )
