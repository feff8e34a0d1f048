"""Self-attention in linear time, with the parameters as they are."""

import flax.linen as nn

from generation import methods


def linfusion(model: nn.Module, steps: int) -> "methods.Method":
  """LinFusion's attention (arXiv 2409.02097) at each step, before any training.

  It has the projections of the trained model and no F. Distillation begins near
  it, and the paper does not sample with it: a distilled model is a run of its
  own, from which one samples without a method.

  Raises:
    ValueError: for a model that has it already.
  """
  methods.require(model, "mixer")
  if model.mixer == "linfusion":
    raise ValueError(
      "mixer is 'linfusion' already; sample from this model without a method"
    )
  changed = model.clone(mixer="linfusion", mixer_options={"update": "none"})
  return methods.Method((changed,), (0,) * steps)
