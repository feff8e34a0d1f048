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
    model: a diffusion transformer with attend="full".
    steps: of sampling.

  Raises:
    ValueError: for another attend.
  """
  if model.attend != "full":
    raise ValueError(
      f"attend is {model.attend!r}; method 'entropy_scale' is for models with "
      "attend='full'"
    )
  options = {**model.attend_options, "scale_by": "entropy"}
  return methods.Method((model.clone(attend_options=options),), (0,) * steps)
