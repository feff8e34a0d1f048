import inspect

import numpy as np
import pytest

from input_pipeline.images import augment

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def create(name, channels):
  operation = augment.OPERATIONS[name]
  options = (
    {"size": 8} if "size" in inspect.signature(operation).parameters else {}
  )
  if name == "random_erasing":
    options |= dict(mean=(0.5,) * channels, std=(0.2,) * channels)
  return operation(**options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_every_operation_is_a_function_of_image_and_generator(name, channels):
  transform = create(name, channels)
  image = np.ascontiguousarray(IMAGE[..., :channels])
  before = image.copy()
  for seed in range(30):
    result = transform(image, np.random.default_rng(seed))
    assert result.dtype == np.uint8
    assert result.ndim == 3
    assert result.shape[2] == channels
    again = transform(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(again, result)
    np.testing.assert_array_equal(image, before)
    # A view with other strides, as flip makes one.
    mirrored = transform(image[:, ::-1], np.random.default_rng(seed))
    copied = transform(image[:, ::-1].copy(), np.random.default_rng(seed))
    np.testing.assert_array_equal(mirrored, copied)
