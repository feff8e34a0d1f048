"""Texts as they are read: a document is a name, for messages, and its text."""

import dataclasses
import hashlib
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Document:
  """One text."""

  name: str
  text: str


def split_off(
  documents: Sequence[Document], share: float
) -> tuple[list[Document], list[Document]]:
  """Splits the last `share` of all characters off, as nanoGPT does.

  The document in which that falls is cut in two.

  Returns:
    (those before, those after).

  Raises:
    ValueError: if one of the two would be empty.
  """
  total = sum(len(document.text) for document in documents)
  left = int(total * (1 - share))
  if not 0 < left < total:
    raise ValueError(
      f"eval_share={share} of the {total} characters of {documents[0].name} "
      "and the others leaves one part empty: give a longer text, or eval_files."
    )
  before, after = [], []
  for document in documents:
    first, rest = document.text[:left], document.text[left:]
    left -= len(first)
    if first:
      before.append(Document(document.name, first))
    if rest:
      after.append(Document(document.name, rest))
  return before, after


def describe(documents: Sequence[Document]) -> dict[str, int | str]:
  """Number, UTF-8 bytes and SHA-256 of documents, to tell texts apart."""
  digest, size = hashlib.sha256(), 0
  for document in documents:
    data = document.text.encode()
    size += len(data)
    # With the length, so that documents cut elsewhere are others.
    digest.update(len(data).to_bytes(8, "little") + data)
  return {
    "documents": len(documents),
    "bytes": size,
    "sha256": digest.hexdigest(),
  }
