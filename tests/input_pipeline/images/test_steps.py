import ml_collections
import numpy as np
import pytest

from input_pipeline.images import augment, decode, reader, transform_spec
from input_pipeline.images.source import Source

# An odd size, and values from which a crop can be told.
HEIGHT, WIDTH = 37, 51
IMAGE = np.random.default_rng(0).integers(
  0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8
)
SPECS = [
  "random_resized_crop|flip",
  "shift(9)|flip(0.5)|random_resized_crop(antialias=False)",
  "affine(rotate=20, shift=0.2, zoom=0.3)",
  "resize_center_crop(16)|flip",
  "center_crop|flip|resize(13)",
]


def apply(spec, example, seed, **options):
  transform = transform_spec.create_transform(spec, image_size=8, **options)
  return transform(example, np.random.default_rng(seed))


@pytest.mark.parametrize("spec", SPECS)
def test_images_of_one_example_are_moved_alike(spec):
  encoded = decode.EncodedImage(decode.encode_image(IMAGE))
  for seed in range(8):
    alone = apply(spec, {"image": IMAGE}, seed)["image"]
    pair = apply(
      spec,
      {"noisy": encoded, "clean": IMAGE, "label": 7},
      seed,
      images=("noisy", "clean"),
    )
    np.testing.assert_array_equal(pair["noisy"], alone)
    np.testing.assert_array_equal(pair["clean"], alone)
    assert pair["label"] == 7


def test_colours_change_in_the_first_image_only():
  spec = "color_jitter|random_resized_crop|random_erasing(1.0)|flip"
  encoded = decode.EncodedImage(decode.encode_image(IMAGE))
  for seed in range(8):
    alone = apply(spec, {"image": IMAGE}, seed)["image"]
    pair = apply(
      spec,
      {"image": IMAGE, "clean": encoded},
      seed,
      images=("image", "clean"),
    )
    np.testing.assert_array_equal(pair["image"], alone)
    assert not np.array_equal(pair["clean"], alone)
  # What nothing moves is decoded all the same.
  still = apply(
    "three_augment",
    {"image": IMAGE, "clean": encoded},
    0,
    images=("image", "clean"),
  )
  np.testing.assert_array_equal(still["clean"], IMAGE)


@pytest.mark.parametrize("spec", SPECS)
def test_label_maps_follow_without_new_labels(spec):
  # Two halves: a label for the dark one and one for the bright one.
  image = np.zeros_like(IMAGE)
  image[:, WIDTH // 2 :] = 255
  labels = np.where(image[..., :1] > 0, np.uint8(200), np.uint8(3))
  for seed in range(8):
    example = apply(
      spec,
      {"image": image, "labels": labels},
      seed,
      label_maps=("labels",),
    )
    # Where a warp reaches outside the image, both are black.
    assert {*np.unique(example["labels"])} <= {0, 3, 200}
    bright = example["image"].mean(axis=-1) > 127
    # But for pixels along the edge, about one a row.
    differ = bright != (example["labels"][..., 0] == 200)
    assert differ.mean() <= 2 / len(differ)


def test_images_of_other_sizes_do_not_fit():
  example = {"image": IMAGE, "clean": IMAGE[1:]}
  with pytest.raises(ValueError, match=r"'clean': \(36, 51\)"):
    apply("flip", example, 0, images=("image", "clean"))


@pytest.mark.parametrize("name", augment.SINGLE)
def test_what_moves_and_recolours_is_for_single_images(name):
  with pytest.raises(ValueError, match=f"{name}.*not for image, clean"):
    apply(name, {}, 0, images=("image", "clean"))


def test_reader_of_pairs():
  records = [
    {
      "image": decode.encode_image(IMAGE),
      "clean": decode.encode_image(IMAGE ^ 255),
      "label": 1,
    },
    {"image": decode.encode_image(IMAGE), "clean": b"damaged", "label": 0},
  ]
  config = ml_collections.ConfigDict(
    dict(
      image_size=8,
      channels=3,
      skip_damaged=True,
      train_transform="random_resized_crop(method=nearest)|flip",
    )
  )
  source = Source("pairs", "train", ("a", "b"), (None, None, 3), records)
  read = reader.Reader(
    source, config, "train_transform", images=("image", "clean")
  )
  example = read(0, np.random.default_rng(3))
  np.testing.assert_array_equal(example["image"], example["clean"] ^ 255)
  assert example["label"] == example["mask"] == 1
  blank = read(1, np.random.default_rng(3))
  assert blank["damaged"]
  assert not blank["clean"].any()
  assert {k: v.shape for k, v in blank.items()} == {
    k: v.shape for k, v in example.items()
  }
