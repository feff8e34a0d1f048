"""The operations that a config can name; `transform_spec.py` reads them.

Each is a function of its options that returns a transform: a function of a
uint8 image `[height, width, channels]` and a random generator that returns a
uint8 image with the same channels.
"""

from input_pipeline.images import (
  color,
  erasing,
  geometry,
  rand_augment,
  resizing,
)

OPERATIONS = {
  operation.__name__: operation
  for operation in (
    geometry.affine,
    rand_augment.auto_augment,
    resizing.center_crop,
    color.color_jitter,
    geometry.flip,
    rand_augment.rand_augment,
    erasing.random_erasing,
    resizing.random_resized_crop,
    resizing.resize,
    resizing.resize_center_crop,
    geometry.shift,
    color.three_augment,
  )
}
