"""What an analysis asks of the kind of a model."""

import flax.linen as nn

from models import transformer


def check_language_model(model: nn.Module) -> None:
  """Checks that a model has layers, heads and logits as language models have.

  Raises:
    ValueError: if it is no `models.transformer.Transformer`.
  """
  if not isinstance(model, transformer.Transformer):
    raise ValueError(
      f"model is a {type(model).__name__}; it must be a language model, a "
      "models.transformer.Transformer"
    )
