"""What all families have in common: their last fields, and their call."""

import jax
import jax.numpy as jnp

from models import layers, taps


class Backbone(taps.Tapped):
  """From an image to logits; a family adds `features` and `classify`.

  Attributes:
    stochastic_depth_rate: largest probability of dropping a residual branch;
      a family says how it grows from block to block.
    num_classes: number of logits; if 0, `model.apply` gives what they would be
      made of.
    remat: whether the backward pass computes each block again instead of
      keeping its activations.
    dtype: dtype of the computation; statistics, softmax and logits are float32.
    param_dtype: dtype of the parameters.
  """

  stochastic_depth_rate: float = 0.0
  num_classes: int = 1000
  remat: bool = False
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images [batch, height, width, channels] to logits [batch, classes].

    Raises:
      ValueError: if `x` is no such array of floating point, or of a size that
        the family does not take.
    """
    logits = self.classify(self.features(x, train=train), train=train)
    return taps.tap(self, "logits", logits) if self.num_classes else logits

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns the feature maps of stem and stages: strides 2, 4, 8, ..."""
    raise NotImplementedError

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    raise NotImplementedError

  @property
  def dtypes(self) -> dict[str, layers.Dtype]:
    """Both, as the fields that layers take."""
    return {"dtype": self.dtype, "param_dtype": self.param_dtype}
