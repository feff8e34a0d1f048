import numpy as np
import pytest

from input_pipeline.images import decode, resizing, transform_spec

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def apply(spec, image_size=8, seed=0):
  transform = transform_spec.create_transform(spec, image_size=image_size)
  return transform({"image": IMAGE}, np.random.default_rng(seed))["image"]


def test_operations_are_applied_from_left_to_right():
  rng = np.random.default_rng(0)
  expected = resizing.center_crop(0.5)(resizing.resize(16)(IMAGE, rng), rng)
  np.testing.assert_array_equal(apply("resize(16)|center_crop(0.5)"), expected)


def test_size_is_the_image_size_unless_given():
  assert apply("resize").shape == (8, 8, 3)
  assert apply("resize()").shape == (8, 8, 3)
  assert apply("resize(5)").shape == (5, 5, 3)
  assert apply("resize(size=5)").shape == (5, 5, 3)


def test_words_are_strings():
  expected = apply("resize(method='nearest')")
  np.testing.assert_array_equal(apply("resize(method=nearest)"), expected)
  assert not np.array_equal(apply("resize"), expected)


def test_one_generator_goes_through_all():
  spec = "random_resized_crop(area=(0.1, 0.5))|flip"
  np.testing.assert_array_equal(apply(spec, seed=1), apply(spec, seed=1))
  assert not np.array_equal(apply(spec, seed=1), apply(spec, seed=2))


@pytest.mark.parametrize(
  "spec", ["random_resized_crop", "flip|random_resized_crop|flip", "resize"]
)
def test_encoded_images_are_decoded(spec):
  transform = transform_spec.create_transform(spec, image_size=8)
  encoded = decode.EncodedImage(decode.encode_image(IMAGE))
  example = transform({"image": encoded, "label": 3}, np.random.default_rng(3))
  np.testing.assert_array_equal(example["image"], apply(spec, seed=3))
  assert example["label"] == 3


def test_only_a_crop_that_comes_first_reduces_the_image():
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  encoded = decode.EncodedImage(decode.encode_image(noise, "jpeg"))
  pixels = encoded.decode()
  for spec, same in (
    ("random_resized_crop|flip", False),
    ("flip|random_resized_crop", True),
    ("center_crop|resize", True),
  ):
    transform = transform_spec.create_transform(spec, image_size=8)
    from_bytes, from_pixels = (
      transform({"image": image}, np.random.default_rng(0))["image"]
      for image in (encoded, pixels)
    )
    assert np.array_equal(from_bytes, from_pixels) == same


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("rezise(3)", "'rezise' is no operation; there are affine, auto_augment"),
    ("", "is not of the form"),
    ("resize(", "is not of the form"),
    ("resize(3) + flip", "is no operation"),
    ("resize(side=3)", "size, method=bicubic, antialias=True"),
    ("resize(3, 4, 5)", "size, method=bicubic, antialias=True"),
    ("resize(-3)", "size is -3"),
    ("flip(1e999)", "probability is inf, but must be a number from 0 to 1"),
    ("resize(1 + open)", "neither a literal nor a word"),
    ("flip(__import__('os').getpid())", "neither a literal nor a word"),
    ("(lambda: 3)()", "is no operation"),
  ],
)
def test_faults(spec, message):
  with pytest.raises(ValueError, match=message):
    transform_spec.create_transform(spec, image_size=8)
