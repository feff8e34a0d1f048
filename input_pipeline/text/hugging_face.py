"""Any tokenizer.json of the library `tokenizers`, as those of the hub."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from input_pipeline.text.documents import Document
from input_pipeline.text.tokenizer import Tokenizer, code_points, utf8_sizes


class HuggingFace(Tokenizer):
  """A tokenizer.json.

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


def _covered_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
  """Bytes up to the end of each token from the end of the one before it."""
  if not offsets:
    return np.zeros(0, np.int64)
  ends = np.concatenate([[0], np.cumsum(utf8_sizes(code_points(text)))])
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
