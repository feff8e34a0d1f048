"""Text as token ids and back: bytes, characters, any Hugging Face tokeniser.

All are saved as JSON that says what it is, so that a run keeps its own.
"""

import abc
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

import storage
from input_pipeline.text.documents import Document

# What a file of ours has, and no tokenizer.json of others.
_KIND = "foveal_tokenizer"
BUILT_IN = ("bytes", "characters")


class Tokenizer(abc.ABC):
  """Turns text into integers from 0 to `vocabulary_size` - 1.

  Attributes:
    vocabulary_size: how many ids there are.
    end_of_text: the id that no text has and that separates documents; or None.
  """

  vocabulary_size: int
  end_of_text: int | None = None

  @abc.abstractmethod
  def encode_documents(
    self, documents: Iterable[Document]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encodes documents, of which special tokens are no part.

    Yields:
      (ids, bytes) of each, integers `[tokens]`: bytes is how many UTF-8 bytes
      of the document each id stands for, in all as many as it has.

    Raises:
      ValueError: for text that has no ids, with the place.
    """

  @abc.abstractmethod
  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """The UTF-8 text of ids, which may begin or end within a character."""

  @abc.abstractmethod
  def save(self) -> bytes:
    """What `load` makes the same tokeniser of."""

  def encode(self, text: str) -> list[int]:
    """The ids of a text."""
    ((ids, _),) = self.encode_documents([Document("the text", text)])
    return ids.tolist()

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; bytes that are no UTF-8 become U+FFFD."""
    return self.decode_bytes(ids).decode("utf-8", errors="replace")

  def token_bytes(self, token: int) -> int:
    """How many bytes one id stands for by itself; 0 for a special one."""
    return len(self.decode_bytes([token]))


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
    self._codes = _code_points(self._characters)
    self.vocabulary_size = len(self._characters)

  def encode_documents(
    self, documents: Iterable[Document]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `Tokenizer`; a character of no id is a ValueError."""
    for document in documents:
      codes = _code_points(document.text)
      ids = np.searchsorted(self._codes, codes)
      ids = np.minimum(ids, self.vocabulary_size - 1)
      unknown = np.flatnonzero(self._codes[ids] != codes)
      if unknown.size:
        raise ValueError(
          f"{document.name} has {document.text[unknown[0]]!r} as character "
          f"{unknown[0]}, which is not among the {self.vocabulary_size} of the "
          f"tokeniser: {self._characters!r}."
        )
      yield ids.astype(np.int32), _utf8_sizes(codes)

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """As `Tokenizer`."""
    return "".join(self._characters[token] for token in ids).encode()

  def save(self) -> bytes:
    """As `Tokenizer`."""
    fields = {_KIND: "characters", "characters": self._characters}
    return json.dumps(fields).encode()


class HuggingFace(Tokenizer):
  """A tokenizer.json of the library `tokenizers`.

  Text is text: what looks like a special token is encoded as its characters,
  and nothing is added at the ends.
  """

  # Names of what separates documents, the first that is there.
  _END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
  _DOCUMENTS_AT_ONCE = 256

  def __init__(self, data: bytes):
    """Takes the file's content.

    Raises:
      ValueError: if the library cannot read it.
    """
    import tokenizers

    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # The library raises nothing more special.
      raise ValueError(f"it is no tokenizer.json: {error}") from error
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self._tokenizer.encode_special_tokens = True
    vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
    self.vocabulary_size = 1 + max(vocabulary.values())
    added = self._tokenizer.get_added_tokens_decoder()
    special = {token.content: i for i, token in added.items() if token.special}
    ends = [special[name] for name in self._END_OF_TEXT if name in special]
    self.end_of_text = ends[0] if ends else None
    self._pieces = _byte_pieces(vocabulary, added)
    self._exact = self._pieces is not None and self._returns_text()

  def _returns_text(self) -> bool:
    """Whether tokens stand for the bytes of a text as it is."""
    # A decomposed letter, a ligature and case for normalisers; spaces for what
    # strips or adds them.
    probe = " e\u0301 \ufb01A\n\t  x "
    ids = self._tokenizer.encode(probe, add_special_tokens=False).ids
    return self.decode_bytes(ids) == probe.encode()

  def encode_documents(
    self, documents: Iterable[Document]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `Tokenizer`.

    A byte-level tokeniser's tokens have their own bytes. That of others may
    change text or leave some out; then a token stands for the characters after
    those of the token before it up to its own last one.
    """
    documents = list(documents)
    for first in range(0, len(documents), self._DOCUMENTS_AT_ONCE):
      some = documents[first : first + self._DOCUMENTS_AT_ONCE]
      texts = [document.text for document in some]
      encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
      for text, encoding in zip(texts, encodings, strict=True):
        ids = np.asarray(encoding.ids, np.int32)
        if self._exact:
          yield ids, np.asarray([len(self._pieces[i]) for i in encoding.ids])
        else:
          yield ids, _covered_bytes(text, encoding.offsets)

  def decode_bytes(self, ids: Sequence[int]) -> bytes:
    """As `Tokenizer`; special tokens are left out."""
    if self._pieces is not None:
      return b"".join(self._pieces.get(token, b"") for token in ids)
    ids = [int(token) for token in ids]
    return self._tokenizer.decode(ids, skip_special_tokens=True).encode()

  def save(self) -> bytes:
    """As `Tokenizer`."""
    return self._tokenizer.to_str().encode()


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


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _utf8_sizes(codes: np.ndarray) -> np.ndarray:
  return 1 + sum((codes >= least) for least in (0x80, 0x800, 0x10000)).astype(
    np.uint8
  )


def _covered_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
  """Bytes up to the end of each token from the end of the one before it."""
  if not offsets:
    return np.zeros(0, np.int64)
  ends = np.concatenate([[0], np.cumsum(_utf8_sizes(_code_points(text)))])
  reached = np.maximum.accumulate([end for _, end in offsets])
  reached[-1] = len(text)
  return np.diff(ends[reached], prepend=0)


def _byte_pieces(
  vocabulary: dict[str, int], added: dict[int, object]
) -> dict[int, bytes] | None:
  """The bytes of each token, if all are written in the byte-level alphabet."""
  # GPT-2's: a byte that can be seen stands for itself, and the others, in
  # order, are the characters from 256 on.
  seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
  hidden = [byte for byte in range(256) if byte not in seen]
  alphabet = {chr(byte): byte for byte in seen}
  alphabet |= {chr(256 + i): byte for i, byte in enumerate(hidden)}
  pieces = {}
  for token, number in vocabulary.items():
    if number in added:
      special = added[number].special
      pieces[number] = b"" if special else token.encode()
    elif all(character in alphabet for character in token):
      pieces[number] = bytes(alphabet[character] for character in token)
    else:
      return None
  # A word list in Latin letters fits the alphabet, but lacks most of it.
  complete = alphabet.keys() <= vocabulary.keys()
  return pieces if complete else None
