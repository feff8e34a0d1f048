"""Whether samples are copies of the images that a generator has learned of."""

from collections.abc import Mapping

import numpy as np
from sklearn import neighbors


def nearness(
  samples: np.ndarray, training: np.ndarray, held_out: np.ndarray
) -> Mapping[str, float]:
  """How near samples are to training images, beside real images that are new.

  A generator that repeats what it has seen has good figures everywhere else;
  here its samples are nearer than new images of the same kind.

  Args:
    samples: uint8 [n, height, width, channels].
    training: likewise, what the generator has seen.
    held_out: likewise, what it has not.

  Returns:
    Of the distance of an image to the nearest training image, the root of the
    mean squared difference of pixels, 0 to 255: `nearest_median` of samples,
    `held_out_nearest_median` of held-out images, and `nearer_than_held_out`,
    the share of samples that are nearer than 99 % of held-out images are, which
    is 0.01 for new ones.

  Raises:
    ValueError: if images have another shape than the training images.
  """
  sets = {"samples": samples, "held_out": held_out}
  for name, images in sets.items():
    if images.shape[1:] != training.shape[1:] or not len(images):
      raise ValueError(
        f"{name} are {list(images.shape)}, but training images are "
        f"{list(training.shape)}: they must have the same shape, and one each "
        "at least."
      )
  flat = lambda images: images.reshape(len(images), -1).astype(np.float64)
  search = neighbors.NearestNeighbors(n_neighbors=1).fit(flat(training))
  size = np.prod(training.shape[1:])
  of_samples, of_held_out = (
    search.kneighbors(flat(images))[0][:, 0] / np.sqrt(size)
    for images in sets.values()
  )
  return {
    "nearest_median": float(np.median(of_samples)),
    "held_out_nearest_median": float(np.median(of_held_out)),
    "nearer_than_held_out": float(
      (of_samples < np.quantile(of_held_out, 0.01)).mean()
    ),
  }
