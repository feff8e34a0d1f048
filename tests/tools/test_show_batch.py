import jax
import numpy as np
import pytest
from PIL import Image

from configs import common, digits
from input_pipeline import images
from tools import show_batch


@pytest.fixture
def digits_config(tmp_path):
  config = digits.get_config("tiny")
  config.data.data_dir = str(tmp_path)
  return config


@pytest.fixture
def fake_config():
  config = common.get_config()
  config.data.name = "fake"
  config.data.fake.image_shape = (40, 50, 3)
  config.data.train_transform = "random_resized_crop|flip|rand_augment"
  config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.2, 0.3, 0.4)
  return config


@pytest.mark.parametrize("name", ["digits_config", "fake_config"])
def test_images_are_those_of_the_pipeline(request, name):
  config = request.getfixturevalue(name)
  shown = show_batch.load_batch(config, 9)
  batch = next(
    images.train_iterator(config.data, seed=config.seed, global_batch_size=9)
  )
  np.testing.assert_allclose(shown["image"] * 255, batch["image"], atol=1e-3)
  expected = jax.nn.one_hot(batch["label"], 10)
  np.testing.assert_array_equal(shown["target"], expected)


def test_config_is_left_as_it_is(digits_config):
  before = digits_config.to_json()
  digits_config.lock()
  show_batch.load_batch(digits_config, 2)
  assert digits_config.to_json() == before


def test_mixtures_have_shares(fake_config):
  fake_config.mixing.mixup_alpha = 0.8
  targets = show_batch.load_batch(fake_config, 16)["target"]
  np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
  assert (targets > 0).sum(axis=1).max() == 2


def test_labels():
  names = ("cat", "dog", "owl")
  describe = show_batch.describe_target
  assert describe(np.array([0, 1.0, 0]), names) == "dog"
  assert describe(np.array([0.3, 0, 0.7]), names) == "owl 70%\ncat 30%"


@pytest.mark.parametrize(
  ("count", "width", "height"), [(3, 450, 190), (9, 1200, 380)]
)
def test_picture_has_a_place_for_each_image(
  fake_config, tmp_path, count, width, height
):
  fake_config.data.train_transform = "resize"
  batch = show_batch.load_batch(fake_config, count)
  batch = {name: np.array(value) for name, value in batch.items()}
  # One that was damaged.
  batch["image"][0], batch["mask"][0] = 0, 0
  path = tmp_path / "batch.png"
  show_batch.draw(batch, [f"class {i}" for i in range(10)], path)
  with Image.open(path) as picture:
    assert picture.format == "PNG"
    assert picture.size == (width, height)
    pixels = np.asarray(picture.convert("RGB"))
  # The black square is there, and colours of the others.
  assert (pixels == 0).all(axis=-1).mean() > 0.3 / count
  assert (pixels.max(axis=-1) - pixels.min(axis=-1) > 60).mean() > 0.05


def test_a_seed_that_would_be_taken_for_another(fake_config):
  fake_config.seed = 2**32
  with pytest.raises(ValueError, match="seed=4294967296 must be"):
    show_batch.load_batch(fake_config, 3)
