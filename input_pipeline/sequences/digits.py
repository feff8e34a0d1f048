"""Handwritten digits as sequences of patches."""

import dataclasses

import numpy as np

from input_pipeline import digits
from input_pipeline.stream import Example

_SIDE = 8


@dataclasses.dataclass(frozen=True)
class Digits:
  """The digits of scikit-learn cut into square patches, row by row.

  A patch is a soft token, whose numbers are its pixels from 0 to 1. The label
  is that of the whole sequence. Examples are drawn with replacement; `load`
  has all of them.

  Attributes:
    patch: side of a patch in pixels.
  """

  patch: int = 2

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if the patches do not tile the image.
    """
    if self.patch not in (1, 2, 4, 8):
      raise ValueError(
        f"patch is {self.patch}, but it must be 1, 2, 4 or 8, which divide the "
        f"{_SIDE} pixels of a digit."
      )

  @property
  def vocabulary_size(self) -> int:
    """Pixels of a patch."""
    return self.patch**2

  @property
  def classes(self) -> int:
    """The digits from 0 to 9."""
    return 10

  @property
  def groups(self) -> tuple[str, ...]:
    """No groups."""
    return ()

  def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All digits of a split, "train" or "eval", in their order.

    Returns:
      (inputs, labels): float32 [number, patches, vocabulary_size], and int32
      [number].
    """
    images, labels = _images(split)
    return self._patches(images), labels

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Draws inputs, targets and weights; see `sources.Source`."""
    images, labels = _images(split)
    drawn = rng.integers(len(labels))
    one = slice(drawn, drawn + 1)
    return {
      "inputs": self._patches(images[one])[0],
      "targets": labels[one],
      "weights": np.ones(1, np.float32),
    }

  def _patches(self, images: np.ndarray) -> np.ndarray:
    number, each = _SIDE // self.patch, self.patch
    patches = images.reshape(-1, number, each, number, each).swapaxes(2, 3)
    inputs = patches.reshape(len(images), number**2, each**2) / 16
    return inputs.astype(np.float32)


def _images(split: str) -> tuple[np.ndarray, np.ndarray]:
  images, labels = digits.load("test" if split == "eval" else split)
  return images, labels.astype(np.int32)
