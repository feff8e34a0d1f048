"""A language model that says of some tokens that they are an image."""

import jax.numpy as jnp

from models import image_places, taps, transformer


class WithImage(transformer.Transformer):
  """Tokens at some positions count as an image's, in every row.

  Attributes:
    image: (start, stop), those positions.
  """

  image: tuple[int, int] = (2, 7)

  def _through(self, x, *rest):
    span = jnp.tile(jnp.array([self.image], jnp.int32), (len(x), 1))
    taps.tap(self, image_places.SPAN, span)
    return super()._through(x, *rest)
