import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lina
from input_pipeline import latents
from input_pipeline.images import fake
from tasks import autoencoders
from tools import encode_latents
from tools.latents import encoder


class Halves(nn.Module):
  """Means are pixels of every other column, log variances one of two values."""

  scaling_factor: float = 0.5

  def setup(self):
    self.factor = self.variable("constants", "factor", jnp.ones, ())

  def encode(self, images):
    if images.shape[-1] != 1:
      raise ValueError("the model needs 1 channels")
    mean = self.factor.value * images
    log_variance = jnp.where(images > 0, -1.0, -2.0)
    return jnp.concatenate([mean, log_variance], -1)[:, :, ::2]


@pytest.fixture
def trained(monkeypatch):
  """Makes an autoencoder whose latents are known, in place of any weights."""

  def load(source, *, fingerprint="", factor=1.0):
    del fingerprint
    variables = {"constants": {"factor": jnp.float32(factor)}}
    print_of = f"{source} {factor}"
    return autoencoders.Trained("halves", source, Halves(), variables, print_of)

  monkeypatch.setattr(autoencoders, "load", load)
  return load


@pytest.fixture
def config():
  """Fake images of 6 x 6, 21 of them and 10."""
  config = lina.get_config("test")
  config.data = latents.default_config()
  config.data.channels = 1
  config.data.name, config.data.image_size = "fake", 6
  config.data.fake.update({"image_shape": (6, 6, 1), "num_classes": 3})
  config.data.fake.update({"train_examples": 21, "test_examples": 10})
  config.data.train_transform = config.data.eval_transform
  config.eval_batch_size = 8
  return config


def read(config, out, split):
  """All real rows of a split of latents, and of the images of the config."""
  data = config.data.copy_and_resolve_references()
  found = []
  for folder in (out, ""):
    data.latents, data.eval_split = str(folder), split
    batches = list(latents.eval_batches(data, batch_size=1))
    found.append(
      {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}
    )
  return found


def expected_moments(images):
  x = images.astype(np.float32) / 127.5 - 1
  log_variance = np.where(x > 0, -1.0, -2.0)
  moments = np.concatenate([x, log_variance], -1)[:, :, ::2]
  return moments.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("flip", [False, True])
def test_moments_are_those_of_the_images(trained, config, tmp_path, flip):
  config.data.eval_split = "test[:4]"
  encode_latents.encode_latents(config, "weights", str(tmp_path), flip=flip)
  for split, count in (("train", 21), ("test", 10)):
    found, images = read(config, tmp_path, split)
    assert len(found["mask"]) == count
    np.testing.assert_array_equal(
      found["moments"], expected_moments(images["image"])
    )
    np.testing.assert_array_equal(found["label"], images["label"])
    np.testing.assert_array_equal(found["example"], images["index"])
  config.data.latents = str(tmp_path)
  info = latents.dataset_info(config.data)
  assert (info.scale, info.latent_shape) == (0.5, (6, 3, 1))
  assert info.num_eval_examples == 4
  if not flip:
    return
  batch = next(
    latents.train_iterator(config.data, seed=0, global_batch_size=40)
  )
  straight = expected_moments(images_of(config, "train"))
  mirrored = expected_moments(images_of(config, "train")[:, :, ::-1])
  stored = batch["moments"]
  is_mirrored = (stored == mirrored[batch["example"]]).all((1, 2, 3))
  is_straight = (stored == straight[batch["example"]]).all((1, 2, 3))
  assert (is_mirrored ^ is_straight).all()
  assert 5 < is_mirrored.sum() < 35


def images_of(config, split):
  data = config.data.copy_and_resolve_references()
  data.latents, data.eval_split = "", split
  (batch,) = latents.eval_batches(data, batch_size=21)
  return batch["image"]


def test_scale_is_the_inverse_of_the_deviation(trained, config, tmp_path):
  encode_latents.encode_latents(
    config, "weights", str(tmp_path), scale="deviation", dtype="float32"
  )
  found, _ = read(config, tmp_path, "train")
  mean, log_variance = np.split(found["moments"], 2, axis=-1)
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(2000, *mean.shape))
  drawn = mean + np.exp(log_variance / 2) * noise
  config.data.latents = str(tmp_path)
  scale = latents.dataset_info(config.data).scale
  assert drawn.std() * scale == pytest.approx(1, rel=2e-3)


def test_goes_on_with_the_split_that_is_missing(
  trained, config, tmp_path, monkeypatch
):
  options = {"scale": "deviation"}
  records = encoder.Encoder.records

  def dies(self, read, data, title):
    for i, record in enumerate(records(self, read, data, title)):
      if title == "encoding test" and i == 3:
        raise KeyboardInterrupt
      yield record

  with monkeypatch.context() as patch:
    patch.setattr(encoder.Encoder, "records", dies)
    with pytest.raises(KeyboardInterrupt):
      encode_latents.encode_latents(config, "w", str(tmp_path), **options)
  titles = []

  def listed(self, read, data, title):
    titles.append(title)
    return records(self, read, data, title)

  monkeypatch.setattr(encoder.Encoder, "records", listed)
  encode_latents.encode_latents(config, "w", str(tmp_path), **options)
  # Nor is the scale measured again.
  assert titles == ["encoding test"]
  assert len(read(config, tmp_path, "test")[0]["mask"]) == 10


def test_does_not_mix_two_autoencoders(trained, config, tmp_path):
  encode_latents.encode_latents(config, "one", str(tmp_path))
  with pytest.raises(ValueError, match=r"'test'.*fingerprint is 'one 1.0'"):
    encode_latents.encode_latents(config, "two", str(tmp_path))
  with pytest.raises(ValueError, match="flip are"):
    encode_latents.encode_latents(config, "one", str(tmp_path), flip=True)
  with pytest.raises(ValueError, match=r"scale is 0.5 and 2.0"):
    encode_latents.encode_latents(config, "one", str(tmp_path), scale="2")


def test_damaged_images_are_left_out(trained, config, tmp_path, monkeypatch):
  get = fake.FakeRecords.__getitem__

  def damaged(self, index):
    record = get(self, index)
    return record | ({"image": b"no image"} if index == 2 else {})

  monkeypatch.setattr(fake.FakeRecords, "__getitem__", damaged)
  with pytest.raises(ValueError, match="Damaged image: record 2"):
    encode_latents.encode_latents(config, "weights", str(tmp_path))
  config.data.skip_damaged = True
  encode_latents.encode_latents(config, "weights", str(tmp_path))
  found, _ = read(config, tmp_path, "test")
  np.testing.assert_array_equal(found["example"], [0, 1, 3, 4, 5, 6, 7, 8, 9])


@pytest.mark.parametrize(
  ("changes", "options", "message"),
  [
    ({}, {"dtype": "int8"}, "dtype is 'int8'; it must be float16 or float32"),
    ({}, {"scale": "big"}, "scale is 'big'; it must be model, deviation"),
    ({}, {"scale": "-1"}, "scale is '-1'"),
    ({"train_transform": "flip|resize"}, {}, "set it to data.eval_transform"),
    ({"channels": 3}, {}, r"data.channels=3 do not fit .*needs 1 channels"),
    ({"eval_split": "validation"}, {}, "validation"),
    (
      {"train_transform": "flip|resize", "eval_transform": "flip|resize"},
      {},
      "eval_transform is random",
    ),
  ],
)
def test_what_does_not_fit(
  trained, config, tmp_path, changes, options, message
):
  config.data.update(changes)
  with pytest.raises(ValueError, match=message):
    encode_latents.encode_latents(config, "w", str(tmp_path), **options)
  assert not list(tmp_path.glob("latents/*/1.0.0"))


def test_moments_beyond_float16(trained, config, tmp_path, monkeypatch):
  monkeypatch.setattr(
    autoencoders, "load", lambda source: trained(source, factor=1e6)
  )
  with pytest.raises(ValueError, match="not finite in float16: try --dtype"):
    encode_latents.encode_latents(config, "w", str(tmp_path))
  encode_latents.encode_latents(config, "w", str(tmp_path), dtype="float32")
  found, _ = read(config, tmp_path, "test")
  assert found["moments"].max() > 65504
