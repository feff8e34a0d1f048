"""Tokenisers by name: bytes, characters, any Hugging Face tokenizer.json.

All are saved as JSON that says what it is, so that a run keeps its own.
"""

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

import storage
from input_pipeline.text.documents import Document
from input_pipeline.text.hugging_face import HuggingFace
from input_pipeline.text.tokenizer import Tokenizer, code_points, utf8_sizes

# What a file of ours has, and no tokenizer.json of others.
_KIND = "foveal_tokenizer"
BUILT_IN = ("bytes", "characters")


class Bytes(Tokenizer):
  """The 256 bytes of UTF-8, and end-of-text as a last id."""

  vocabulary_size = 257
  end_of_text = 256

  def encode_documents(
    self, documents: Iterable[Document]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `Tokenizer`; every text has ids."""
    for document in documents:
      ids = np.frombuffer(document.text.encode(), np.uint8)
      yield ids, np.ones_like(ids)

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """As `Tokenizer`."""
    return bytes(token for token in ids if token != self.end_of_text)

  def save(self) -> bytes:
    """As `Tokenizer`."""
    return json.dumps({_KIND: "bytes"}).encode()


class Characters(Tokenizer):
  """The characters of one text, in their order, and no other id."""

  def __init__(self, characters: Iterable[str]):
    """Takes the characters, in any order."""
    self._characters = "".join(sorted(set(characters)))
    self._codes = code_points(self._characters)
    self.vocabulary_size = len(self._characters)

  def encode_documents(
    self, documents: Iterable[Document]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `Tokenizer`; a character of no id is a ValueError."""
    for document in documents:
      codes = code_points(document.text)
      ids = np.searchsorted(self._codes, codes)
      ids = np.minimum(ids, self.vocabulary_size - 1)
      unknown = np.flatnonzero(self._codes[ids] != codes)
      if unknown.size:
        raise ValueError(
          f"{document.name} has {document.text[unknown[0]]!r} as character "
          f"{unknown[0]}, which is not among the {self.vocabulary_size} of the "
          f"tokeniser: {self._characters!r}."
        )
      yield ids.astype(np.int32), utf8_sizes(codes)

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """As `Tokenizer`."""
    return "".join(self._characters[token] for token in ids).encode()

  def save(self) -> bytes:
    """As `Tokenizer`."""
    fields = {_KIND: "characters", "characters": self._characters}
    return json.dumps(fields).encode()


def load(data: bytes) -> Tokenizer:
  """The tokeniser of a file: what `save` returned, or a tokenizer.json.

  Raises:
    ValueError: if it is neither.
  """
  try:
    fields = json.loads(data)
  except ValueError as error:
    raise ValueError(f"it is no tokenizer.json: {error}") from error
  kind = fields.get(_KIND) if isinstance(fields, dict) else None
  if kind == "bytes":
    return Bytes()
  if kind == "characters":
    return Characters(fields["characters"])
  return HuggingFace(data)


def create(name: str, documents: Iterable[Document]) -> Tokenizer:
  """The tokeniser of `config.data.tokenizer`.

  Args:
    name: one of BUILT_IN, or the path of a file.
    documents: all that have to have ids; only "characters" looks at them.

  Raises:
    ValueError: if there is no such file or it is none of a tokeniser.
  """
  if name == "bytes":
    return Bytes()
  if name == "characters":
    texts = [document.text for document in documents]
    if not texts:
      raise ValueError(
        "tokenizer='characters' takes its characters from a text, and there is "
        "none here: give the tokenizer.json of a run."
      )
    return Characters(set().union(*texts))
  path = storage.path(name)
  if not path.is_file():
    raise ValueError(
      f"tokenizer is {name!r}, which is none of {', '.join(BUILT_IN)} and no "
      "file. python -m tools.train_tokenizer makes one."
    )
  try:
    return load(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"tokenizer: {path} cannot be used: {error}") from error
