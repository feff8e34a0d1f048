"""What a tokeniser is."""

import abc
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from input_pipeline.text.documents import Document


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


def code_points(text: str) -> np.ndarray:
  """The characters of a text as uint32 `[characters]`."""
  return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def utf8_sizes(codes: np.ndarray) -> np.ndarray:
  """How many bytes of UTF-8 each character takes: uint8, 1 to 4."""
  longer = [codes >= least for least in (0x80, 0x800, 0x10000)]
  return 1 + np.sum(longer, axis=0, dtype=np.uint8)
