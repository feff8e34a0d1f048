import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.text import tokenizers
from input_pipeline.text.documents import Document

from .conftest import DOCUMENTS


@pytest.fixture(params=["bytes", "characters", "bpe"])
def tokenizer(request, bpe_file):
  name = bpe_file if request.param == "bpe" else request.param
  return tokenizers.create(name, [Document("d", t) for t in DOCUMENTS])


def encode(tokenizer, text):
  ((ids, sizes),) = tokenizer.encode_documents([Document("text", text)])
  return ids.tolist(), sizes.tolist()


@pytest.mark.parametrize("text", [*DOCUMENTS, ""])
def test_any_text_comes_back_and_has_its_bytes(tokenizer, text):
  ids, sizes = encode(tokenizer, text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.encode(text) == ids
  assert all(0 <= token < tokenizer.vocabulary_size for token in ids)
  assert tokenizer.end_of_text not in ids
  assert sum(sizes) == len(text.encode())
  assert sizes == [tokenizer.token_bytes(token) for token in ids]


def test_saved_and_loaded_is_the_same(tokenizer):
  other = tokenizers.load(tokenizer.save())
  assert other.vocabulary_size == tokenizer.vocabulary_size
  assert other.end_of_text == tokenizer.end_of_text
  for text in DOCUMENTS:
    assert other.encode(text) == tokenizer.encode(text)
  assert other.save() == tokenizer.save()


@settings(max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_tokens_are_bytes_of_any_text(bpe_file, text):
  tokenizer = tokenizers.create(bpe_file, ())
  ids, sizes = encode(tokenizer, text)
  # Each token by itself too, within characters.
  pieces = [tokenizer.decode_bytes([token]) for token in ids]
  assert b"".join(pieces) == text.encode()
  assert sizes == [len(piece) for piece in pieces]


def test_bpe_merges_and_keeps_what_looks_special(bpe_file):
  tokenizer = tokenizers.create(bpe_file, ())
  assert len(tokenizer.encode("To be, or not to be")) < 14
  assert tokenizer.end_of_text == 0
  assert tokenizer.decode([0]) == ""
  assert tokenizer.vocabulary_size == 290


def test_characters_are_those_of_the_text():
  tokenizer = tokenizers.create("characters", [Document("a", "b\né a")])
  assert tokenizer.vocabulary_size == 5
  assert tokenizer.encode("\n abé") == [0, 1, 2, 3, 4]
  with pytest.raises(ValueError, match=r"the text has 'c' as character 2,.* 5"):
    tokenizer.encode("abc")
  with pytest.raises(ValueError, match="has '\U0001f600' as character 0"):
    tokenizer.encode("\U0001f600")


def make_lossy(tmp_path):
  """As BERT's: lower case, no accents, no spaces, unknown words."""
  made = library.Tokenizer(
    library.models.WordPiece(
      {"[UNK]": 0, "[SEP]": 1, "ca": 2, "va": 3, "##s": 4}, unk_token="[UNK]"
    )
  )
  made.normalizer = library.normalizers.BertNormalizer()
  made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
  made.add_special_tokens(["[SEP]"])
  path = tmp_path / "lossy.json"
  made.save(str(path))
  return tokenizers.create(str(path), ())


def test_tokens_that_change_text_share_its_bytes(tmp_path):
  tokenizer = make_lossy(tmp_path)
  # Of "Ças" two bytes, one and one; a space belongs to what follows it.
  ids, sizes = encode(tokenizer, "Ças  va \U0001f600 ")
  assert ids == [2, 4, 3, 0]
  assert sizes == [3, 1, 4, 6]
  assert tokenizer.end_of_text == 1
  assert encode(tokenizer, "") == ([], [])


def test_normalised_text_is_measured_as_it_was(bpe_file, tmp_path):
  fields = json.loads(Path(bpe_file).read_text())
  fields["normalizer"] = {"type": "NFC"}
  path = tmp_path / "nfc.json"
  path.write_text(json.dumps(fields))
  tokenizer = tokenizers.create(str(path), ())
  text = "e\u0301 e\u0301"
  ids, sizes = encode(tokenizer, text)
  assert len(tokenizer.decode_bytes(ids)) == 5
  assert sum(sizes) == len(text.encode()) == 7


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{}", "no tokenizer.json: Model missing"),
    ("[1]", "no tokenizer.json"),
    ("not json", "no tokenizer.json: Expecting value"),
    ("\udcff", "no tokenizer.json: 'utf-8'"),
  ],
)
def test_files_that_are_none(tmp_path, content, message):
  path = tmp_path / "some.json"
  path.write_bytes(content.encode("utf-8", "surrogateescape"))
  with pytest.raises(ValueError, match=f"some.json cannot be used.*{message}"):
    tokenizers.create(str(path), ())


def test_absent_file():
  with pytest.raises(ValueError, match="'byte', which is none of bytes, char"):
    tokenizers.create("byte", ())


def test_bytes_within_a_character_decode():
  tokenizer = tokenizers.Bytes()
  assert tokenizer.decode([0xC3]) == "\ufffd"
  assert tokenizer.decode(np.array([0xC3, 0xA9, 256])) == "é"
