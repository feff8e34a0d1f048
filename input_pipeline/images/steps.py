"""One operation on all the images of an example, with the same draws."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.images import decode, transforms
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class Step:
  """A function of an example and a generator that returns an example.

  Attributes:
    acts: for the name of each image that changes, what changes it. All see a
      generator in the same state, so that images of one size are cut, turned
      and mirrored alike.
  """

  acts: dict[str, transforms.Transform]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """The example with other images; what is encoded is decoded.

    Raises:
      ValueError: for images of different sizes, which would not stay in place.
    """
    _check_sizes(example, self.acts)
    # The last one leaves the generator to the next step.
    replays = [copy.deepcopy(rng) for _ in range(len(self.acts) - 1)] + [rng]
    changed = {
      name: _act(transform, example[name], replay)
      for (name, transform), replay in zip(
        self.acts.items(), replays, strict=True
      )
    }
    return example | changed


def decode_all(example: Example, names: Sequence[str]) -> Example:
  """The example with those images decoded that no step has touched."""
  return example | {
    name: example[name].decode()
    for name in names
    if isinstance(example[name], decode.EncodedImage)
  }


def _act(
  transform: transforms.Transform,
  image: np.ndarray | decode.EncodedImage,
  rng: np.random.Generator,
) -> np.ndarray:
  """Applies a transform, from the encoded image if it can."""
  if isinstance(image, np.ndarray):
    return transform(image, rng)
  if hasattr(transform, "decode"):
    return transform.decode(image, rng)
  return transform(image.decode(), rng)


def _check_sizes(example: Example, names: Sequence[str]) -> None:
  sizes = {name: tuple(example[name].shape[:2]) for name in names}
  if len(set(sizes.values())) > 1:
    raise ValueError(
      f"The images of one example have sizes {sizes}, but one crop fits only"
      " images of the same height and width."
    )
