"""A perceptron of several layers on the pixels of an image.

What is left of an image classifier without convolutions and attention; small
enough for experiments that ask of each neuron, as TauGate's (arXiv 2602.11726).
"""

import functools

import flax.linen as nn
import jax

from models import dense as dense_product
from models import layers
from models.backbone import Backbone

KIND = "image"


class Perceptron(Backbone):
  """Dense layers with ReLU, "layer_0" and so on, and logits.

  Attributes:
    widths: neurons of each hidden layer.
    stochastic_depth_rate: must be 0, for there are no residual branches.
    num_classes: number of logits; if 0, the last hidden layer comes out.
  """

  widths: tuple[int, ...] = (256, 256)

  def setup(self):
    if not self.widths or min(self.widths) < 1:
      raise ValueError(
        f"widths is {self.widths}; there must be a layer, each of at least 1"
      )
    if self.stochastic_depth_rate:
      raise ValueError(
        f"stochastic_depth_rate is {self.stochastic_depth_rate}, but there are "
        "no residual branches to drop; it must be 0"
      )
    kind = nn.remat(nn.Dense) if self.remat else nn.Dense
    dense = functools.partial(
      kind, dot_general=dense_product.dot_general, **self.dtypes
    )
    self.layer = [dense(width) for width in self.widths]
    self.head = layers.Head(self.num_classes, 0.0, **self.dtypes)

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns hidden layers, as maps of one pixel [batch, 1, 1, width].

    Images must all have the size of those that the model was made with.
    """
    del train
    layers.check_images(x)
    x = x.reshape(len(x), -1)  # [batch, height * width * channels]
    maps = []
    for dense in self.layer:
      x = nn.relu(dense(x))
      maps.append(x[:, None, None])
    return maps

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    return self.head(maps[-1], train)

  @property
  def size_multiple(self) -> int:
    """Images may have any size."""
    return 1


VARIANTS = {"perceptron": (Perceptron, {})}
IMAGE_SIZES = {"perceptron": 28}
