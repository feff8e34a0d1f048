import numpy as np
import pytest

from input_pipeline import latents
from input_pipeline.latents import captions
from tests.input_pipeline.latents.test_latents import stack, train


def make(count, seed=0, tokens=4, width=6, **owners):
  rng = np.random.default_rng(seed)
  return captions.Captions(
    text=rng.normal(size=(count, tokens, width)).astype(np.float16),
    lengths=rng.integers(1, tokens + 1, count).astype(np.int32),
    **{name: np.array(value) for name, value in owners.items()},
  )


@pytest.fixture
def save(tmp_path, config):
  """A function that saves captions and names them in the config."""

  def save(texts):
    config.text = str(tmp_path / "text.npz")
    captions.save(tmp_path / "text.npz", texts)
    return texts

  return save


def rows_of(found, texts):
  """Which caption each row has, checked in all of its values."""
  rows = []
  for text, length in zip(found["text"], found["text_length"], strict=True):
    (row,) = np.flatnonzero((texts.text == text).all((1, 2)))
    assert texts.lengths[row] == length
    rows.append(row)
  return np.array(rows)


def test_one_for_each_class(config, save):
  texts = save(make(3))
  assert latents.dataset_info(config).text_shape == (4, 6)
  for batches in (train(config), latents.eval_batches(config, batch_size=7)):
    found = stack(batches)
    np.testing.assert_array_equal(rows_of(found, texts), found["label"])
    assert found["text"].dtype == np.float32
    assert found["text_length"].dtype == np.int32


def test_several_for_a_class(config, save):
  texts = save(make(5, label=[2, 0, 1, 2, 2]))
  found = stack(train(config, count=100))
  rows = rows_of(found, texts)
  np.testing.assert_array_equal(texts.label[rows], found["label"])
  # Some 133 draws of three; five deviations.
  share = (
    np.bincount(rows, minlength=5)[[0, 3, 4]] / (texts.label[rows] == 2).sum()
  )
  assert np.abs(share - 1 / 3).max() < 0.21
  found = stack(latents.eval_batches(config, batch_size=7))
  np.testing.assert_array_equal(
    rows_of(found, texts), np.array([1, 2, 0])[found["label"]]
  )


def test_of_examples(config, save):
  order = np.random.default_rng(1).permutation(20)
  split = np.array(["train"] * 13 + ["test"] * 7)[order]
  texts = save(make(20, split=split, example=np.r_[:13, :7][order]))
  config.train_split = "train[4:]"
  for name, batches in (
    ("train", train(config)),
    ("test", latents.eval_batches(config, batch_size=7)),
  ):
    found = stack(batches)
    rows = rows_of(found, texts)
    np.testing.assert_array_equal(texts.example[rows], found["example"])
    assert set(texts.split[rows]) == {name}


def test_of_some_classes(config, save):
  texts = save(make(3, label=[1, 2, 0]))
  config.classes = (2, 1)
  found = stack(train(config))
  np.testing.assert_array_equal(
    rows_of(found, texts), np.array([1, 0])[found["label"]]
  )


def test_padding_has_no_text(config, save):
  save(make(3))
  found = stack(latents.eval_batches(config, batch_size=4))
  assert (found["text_length"] > 0).sum() == 7
  assert not found["text"][7:].any()


def test_pixels_have_texts_too(config, save):
  texts = save(make(10))
  config.latents, config.name = "", "fake"
  found = stack(train(config, count=2))
  np.testing.assert_array_equal(rows_of(found, texts), found["label"])
  assert found["image"].shape == (8, 32, 32, 3)


def test_any_file_of_texts(config, tmp_path):
  texts = make(3)
  np.savez(tmp_path / "phi.npz", text=texts.text, comment=np.array("Phi-2"))
  config.text = str(tmp_path / "phi.npz")
  found = stack(latents.eval_batches(config, batch_size=7))
  np.testing.assert_array_equal(found["text_length"], 4)


@pytest.mark.parametrize(
  ("texts", "message"),
  [
    (make(4), "has 4 captions.*each of the 3 classes"),
    (make(2, label=[0, 2]), "no caption of 1 classes of 3.*1, 'one'"),
    (
      make(13, example=range(13), split=["train"] * 13),
      "captions of 0 examples of split 'test', but 7",
    ),
    (make(3, label=[0, 1]), r"label .* has shape \(2,\).*\(3,\)"),
    (make(3, example=[0, 1, 2]), "both of example and split"),
  ],
)
def test_what_does_not_fit(config, save, texts, message):
  save(texts)
  with pytest.raises(ValueError, match=message):
    latents.eval_batches(config, batch_size=7)


def test_examples_of_pixels(config, save):
  save(make(256, example=range(256), split=["test"] * 256))
  config.latents, config.name = "", "fake"
  with pytest.raises(ValueError, match="encode the images with tools"):
    latents.eval_batches(config, batch_size=7)


def test_files_that_are_none(config, tmp_path):
  config.text = str(tmp_path / "text.npz")
  for content, message in (
    (None, "does not exist"),
    (b"text", "is no .npz of arrays"),
    ({"text": np.zeros((3, 4), np.float32)}, r"float32 of \(3, 4\)"),
    ({"text": np.zeros((3, 4, 6), int)}, "needs floating text"),
    ({"captions": np.zeros((3, 4, 6))}, "has none"),
    (
      {"text": np.zeros((3, 4, 6)), "lengths": np.array([1, 5, 2])},
      "lengths .* are 1 to 5.*the 4 tokens",
    ),
  ):
    if isinstance(content, dict):
      np.savez(tmp_path / "text.npz", **content)
    elif content:
      (tmp_path / "text.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
      latents.dataset_info(config)


def test_a_new_file_is_read(config, save):
  save(make(3))
  latents.dataset_info(config)
  save(make(3, tokens=5))
  assert latents.dataset_info(config).text_shape == (5, 6)
