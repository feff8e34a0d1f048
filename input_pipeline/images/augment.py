"""The operations that a config can name; `transform_spec.py` reads them.

Each is a function of its options that returns a transform: a function of a
uint8 image `[height, width, channels]` and a random generator that returns a
uint8 image with the same channels. What it draws depends on the height and
width of the image and on nothing else of it.
"""

from input_pipeline.images import (
  color,
  erasing,
  geometry,
  rand_augment,
  resizing,
)


def _by_name(*operations):
  return {operation.__name__: operation for operation in operations}


# They move pixels: all the images of an example in the same way.
GEOMETRIC = _by_name(
  geometry.affine,
  geometry.flip,
  geometry.shift,
  geometry.turn,
  resizing.center_crop,
  resizing.random_resized_crop,
  resizing.resize,
  resizing.resize_center_crop,
)
# They change values: only of the image that the model sees.
PHOTOMETRIC = _by_name(
  color.color_jitter, color.three_augment, erasing.random_erasing
)
# They do both, so they are for examples of a single image.
SINGLE = _by_name(rand_augment.auto_augment, rand_augment.rand_augment)

OPERATIONS = dict(sorted((GEOMETRIC | PHOTOMETRIC | SINGLE).items()))
