"""Sparse attention without a thought while sampling, as a control."""

import flax.linen as nn

from generation import methods


def naive(
  model: nn.Module,
  steps: int,
  *,
  kind: str = "random",
  density: float = 0.5,
  block_size: int = 1,
  seed: int = 0,
  dense_steps: int = 0,
  dense_layers: int = 0,
  scale_by: str = "constant",
) -> "methods.Method":
  """Attends by a mask that knows nothing but its density.

  Args:
    model: a diffusion transformer.
    steps: of sampling.
    kind, density, block_size, seed, scale_by: see `models.attends.naive`.
    dense_steps: steps, the first ones, that attend to all.
    dense_layers: layers, the first ones, that do so at each step.

  Raises:
    ValueError: if there are not so many steps.
  """
  changed = methods.with_attend(
    model,
    "naive",
    {
      "kind": kind,
      "density": density,
      "block_size": block_size,
      "seed": seed,
      "scale_by": scale_by,
    },
    dense_layers=dense_layers,
  )
  return methods.full_first(
    model, changed, steps, dense_steps, scale_by, name="dense_steps"
  )
