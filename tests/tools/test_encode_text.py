import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lina
from input_pipeline import latents
from input_pipeline.latents import captions
from input_pipeline.text import tokenizers
from input_pipeline.text.documents import Document
from models.transformer import Transformer
from tests import parity_helper
from tests.models import hub_folders
from tools import encode_text
from tools.latents import caption_sources, text_encoder


@pytest.fixture(scope="module")
def encoder():
  """A small encoder of bytes, with random weights."""
  model = Transformer(width=8, depth=1, heads=2, causal=False, mlp_width=12)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  variables = parity_helper.randomise(shapes, 0)
  return text_encoder.TextEncoder(model, variables, tokenizers.Bytes())


@pytest.fixture
def loaded(encoder, monkeypatch):
  monkeypatch.setattr(text_encoder, "load", lambda *args: encoder)
  return encoder


def documents(*texts):
  return [Document(f"text {i}", text) for i, text in enumerate(texts)]


def alone(encoder, text):
  """The states of a text that nothing is beside."""
  tokens = jnp.array([list(text.encode())], jnp.int32)
  apply = functools.partial(encoder.model.apply, method="hidden_states")
  return jax.jit(apply)(encoder.variables, tokens)[0]


def test_each_text_is_as_if_alone(loaded, tmp_path):
  texts = ("a", "seven", "", "two words", "ä")
  path = tmp_path / "text.npz"
  encode_text.encode_text(
    "any",
    str(path),
    documents(*texts),
    {"label": [2, 0, 1, 1, 0]},
    batch_size=2,
    dtype="float32",
  )
  found = captions.load(str(path))
  assert found.text_shape == (9, 8)
  np.testing.assert_array_equal(found.lengths, [1, 5, 0, 9, 2])
  np.testing.assert_array_equal(found.label, [2, 0, 1, 1, 0])
  for row, text in enumerate(texts):
    length = found.lengths[row]
    assert not found.text[row, length:].any()
    if text:
      np.testing.assert_allclose(
        found.text[row, :length], alone(loaded, text), atol=1e-5
      )
  with np.load(path) as notes:
    assert tuple(notes["captions"]) == texts
    assert notes["fingerprint"] == loaded.fingerprint


def test_texts_are_cut_off_when_asked(loaded, tmp_path, capsys):
  path = str(tmp_path / "text.npz")
  texts = documents("abc", "x" * 513)
  with pytest.raises(ValueError, match=r"text 1 has 513 tokens.* takes 512"):
    encode_text.encode_text("any", path, texts, {})
  encode_text.encode_text("any", path, texts, {}, max_tokens=4)
  found = captions.load(path)
  np.testing.assert_array_equal(found.lengths, [3, 4])
  assert found.text.dtype == np.float16
  np.testing.assert_allclose(found.text[1], alone(loaded, "xxxx"), rtol=2e-3)
  assert "1 of them cut off" in capsys.readouterr().out


def test_classes_by_template(loaded, tmp_path):
  config = lina.get_config("test")
  config.data = latents.default_config()
  config.data.name, config.data.fake.num_classes = "fake", 3
  texts, owners = caption_sources.of_classes(config, "a {name}.")
  assert [t.text for t in texts] == [f"a class {i}." for i in range(3)]
  path = str(tmp_path / "text.npz")
  encode_text.encode_text("any", path, texts, owners, dtype="float32")
  config.data.text = path
  batch = next(latents.train_iterator(config.data, seed=0, global_batch_size=9))
  for text, label in zip(batch["text"], batch["label"], strict=True):
    wanted = alone(loaded, f"a class {label}.")
    np.testing.assert_allclose(text, wanted, atol=1e-5)
  with pytest.raises(ValueError, match=r"it needs {name}"):
    caption_sources.of_classes(config, "a digit")


def write_lines(path, *records):
  lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
  path.write_text("\n".join(lines) + "\n")
  return str(path)


def test_lines_of_json(tmp_path):
  path = write_lines(
    tmp_path / "a.jsonl",
    {"text": "one", "split": "train", "example": 3},
    "",
    {"text": "two", "split": "test", "example": 0, "more": 1},
  )
  texts, owners = caption_sources.of_lines(path)
  assert [text.text for text in texts] == ["one", "two"]
  assert owners == {"example": [3, 0], "split": ["train", "test"]}


@pytest.mark.parametrize(
  ("records", "message"),
  [
    (["{"], "line 1 is not JSON"),
    ([{"caption": "a"}], "line 1 is no object with a string in text"),
    ([{"text": "a", "label": "1"}], "label='1'; it must be an int >= 0"),
    ([{"text": "a", "example": 1}], "has example, but a caption is of"),
    ([{"text": "a", "label": 1}, {"text": "b"}], "line 2 and .*line 1 do not"),
    ([""], "have no line"),
  ],
)
def test_lines_that_do_not_fit(tmp_path, records, message):
  path = write_lines(tmp_path / "a.jsonl", *records)
  with pytest.raises(ValueError, match=message):
    caption_sources.of_lines(path)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_tokens": 513}, "max_tokens is 513; it must be 1 to 512"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"batch_size": 0}, "batch_size is 0"),
  ],
)
def test_options_that_do_not_fit(loaded, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    encode_text.encode_text(
      "any", str(tmp_path / "t.npz"), documents("a"), {}, **options
    )


def test_texts_without_tokens(loaded, tmp_path):
  with pytest.raises(ValueError, match="no caption has a token"):
    encode_text.encode_text("any", str(tmp_path / "t.npz"), documents(""), {})


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_folder_of_the_hub(tmp_path, name):
  config = hub_folders.CONFIGS[name] | {"vocab_size": 257}
  model, variables, tensors = hub_folders.model_and_tensors(config)
  hub_folders.write(tmp_path, config, tensors)
  (tmp_path / "tokenizer.json").write_bytes(tokenizers.Bytes().save())
  loaded = text_encoder.load(str(tmp_path))
  (ids,) = loaded.tokenize(documents("zero"))
  found = loaded.encode([ids], 1)[0]
  expected = model.apply(variables, ids[None], method="hidden_states")[0]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_phi_cannot_be_read(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi"}))
  with pytest.raises(ValueError, match="model_type 'phi'; weights can be read"):
    text_encoder.load(str(tmp_path))


def test_a_tokeniser_of_another_model(encoder):
  small = Transformer(vocabulary_size=100, width=8, heads=2)
  other = text_encoder.TextEncoder(small, {}, tokenizers.Bytes())
  with pytest.raises(ValueError, match="has id 122, but the encoder knows 100"):
    other.tokenize(documents("z"))
