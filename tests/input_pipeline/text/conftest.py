"""Texts on disk for the tests of the room for text."""

import json

import pytest

from input_pipeline import text
from tools import train_tokenizer

# Of one to four bytes a character, with what tokenisers like to change.
DOCUMENTS = (
  "To be, or not to be: that is the question.\n",
  "ab",
  "Ça va? \u00e9 and e\u0301, \ufb01ne. \U0001f600\U0001f600 ok\n\n\n",
  "x" * 70 + "\r\n\t" + "yz" * 9,
  "\x00\x07 <|endoftext|> \u2028 \ufeff end ",
  "q",
)


@pytest.fixture
def config():
  """`config.data` with short rows."""
  config = text.default_config()
  config.length = 16
  config.num_threads = 0
  return config


@pytest.fixture
def write_lines(tmp_path):
  """A function that writes texts as JSON lines and returns the path."""

  def write(texts, name="lines.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)

  return write


@pytest.fixture
def lines_config(config, write_lines):
  """`config.data` whose texts, to train on and to evaluate, are DOCUMENTS."""
  path = write_lines(DOCUMENTS)
  config.update(files=path, eval_files=path, format="jsonl")
  return config


@pytest.fixture(scope="session")
def bpe_file(tmp_path_factory):
  """A small byte-level BPE tokenizer.json."""
  path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  path.write_text(train_tokenizer.train_tokenizer([*DOCUMENTS] * 3, 290))
  return str(path)
