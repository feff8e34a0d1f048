"""Samples of another size than in training: the entropy scale."""

import flax.linen as nn

from generation import methods


def entropy_scale(model: nn.Module, steps: int) -> "methods.Method":
  """Multiplies the scores of self-attention by sqrt(ln N / ln T), at each step.

  "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image
  Synthesis" (arXiv 2306.08645), for N keys where training had T: more keys than
  in training flatten the weights no more. At the size of training that is the
  model as it is, to the bit, and so is cross-attention at any size.

  Args:
    model: a diffusion transformer whose self-attention has scores. Where it is
      sparse, N are the keys that a query sees.
    steps: of sampling.

  Raises:
    ValueError: if it has none.
  """
  return methods.Method((methods.scaled(model, "entropy"),), (0,) * steps)
