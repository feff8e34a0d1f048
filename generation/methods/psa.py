"""PSA (arXiv 2512.04025): full attention at first, then the pyramid."""

from collections.abc import Sequence

import flax.linen as nn

from generation import methods


def psa(
  model: nn.Module,
  steps: int,
  *,
  full_steps: int = 0,
  block_q: int = 128,
  block_k: int = 128,
  bounds: Sequence[float] = (0.10, 0.15, 0.15, 0.35),
  chosen_by: str = "count",
  caps: Sequence[float] | None = None,
  window: Sequence[int] | None = None,
  order: str = "rows",
  clusters: Sequence[int] = (200, 1000),
  iterations: Sequence[int] = (50, 2),
  text_rows: bool = False,
  importance: str = "scores",
  stride: int = 16,
  seed: int | None = None,
  scale_by: str = "constant",
) -> "methods.Method":
  """Pyramid sparse attention in the later steps.

  Args:
    model: that was trained.
    steps: of sampling.
    full_steps: the first ones, with attention as it is: 12 or 15 of 50 for most
      models of the paper. (Its code counts calls of attention instead.)
    block_q: see `models.attends.pyramid`, and so for all that follow.
    block_k: keys in a block.
    bounds: shares of the blocks, or of their importance, up to each level.
    chosen_by: "count" or "mass".
    caps: thresholds of how alike the keys of a block must be.
    window: sides of the windows of tokens that blocks are made of.
    order: "rows", "gilbert" or "kmeans".
    clusters: of queries and of keys, for "kmeans".
    iterations: of the first step with the pyramid and of each later one, for
      "kmeans".
    text_rows: whether queries see all keys where they are a text's.
    importance: "scores", "antidiagonal" or "random".
    stride: tokens in a group of the antidiagonal estimate.
    seed: of what is drawn.
    scale_by: "constant" or "entropy".

  Raises:
    ValueError: if there are not so many steps.
  """
  options = {
    "block_q": block_q,
    "block_k": block_k,
    "bounds": tuple(bounds),
    "chosen_by": chosen_by,
    "caps": None if caps is None else tuple(caps),
    "window": None if window is None else tuple(window),
    "order": order,
    "clusters": _hashable(clusters),
    "iterations": _hashable(iterations),
    "text_rows": text_rows,
    "importance": importance,
    "stride": stride,
    "seed": seed,
    "scale_by": scale_by,
  }
  changed = methods.with_attend(model, "pyramid", options)
  return methods.full_first(model, changed, steps, full_steps, scale_by)


def _hashable(pair):
  """What is no sequence is for the attend to refuse."""
  return tuple(pair) if isinstance(pair, Sequence) else pair
