"""Documents in files: whole text files, and lines of JSON."""

import json
import os
import pathlib
from collections.abc import Iterator

from etils import epath

import storage
from input_pipeline.text.documents import Document

_MAGIC = frozenset("*?[")


def find(patterns: str, argument: str) -> list[epath.Path]:
  """The files of paths and globs with commas between, in sorted order.

  Args:
    patterns: as `config.data.files`; `**` stands for any folders.
    argument: the name of the field, for messages.

  Raises:
    ValueError: if one of them is no file, or matches none.
  """
  found = []
  for pattern in filter(None, map(str.strip, patterns.split(","))):
    found += _match(pattern, argument)
  if not found:
    raise ValueError(f"{argument} is {patterns!r}, which names no file.")
  # A file that two patterns match is one document.
  return list(dict.fromkeys(found))


def _match(pattern: str, argument: str) -> list[epath.Path]:
  path = storage.path(pattern)
  parts = path.parts
  first = next((i for i, p in enumerate(parts) if _MAGIC & set(p)), len(parts))
  if first == len(parts) or path.is_file():
    if path.is_dir():
      raise ValueError(
        f"{argument} has the folder {pattern}: give its files, as "
        f"{storage.quote(path / '**' / '*.txt')}."
      )
    if not path.exists():
      raise ValueError(
        f"{argument} has {pattern}, which does not exist (looked for "
        f"{storage.absolute(path)})."
      )
    return [path]
  folder = type(path)(*parts[:first])
  if not storage.is_remote(folder):
    # epath's own leaves `**` out, which takes long in a bucket.
    folder = pathlib.Path(folder)
  try:
    matches = map(storage.path, folder.glob(os.path.join(*parts[first:])))
    files = sorted(match for match in matches if match.is_file())
  except NotImplementedError as error:
    raise ValueError(f"{argument} has {pattern}: {error}") from error
  if not files:
    raise ValueError(
      f"{argument} has {pattern}, which matches no file in "
      f"{storage.absolute(storage.path(folder))}."
    )
  return files


def read_text(path: epath.Path) -> Iterator[Document]:
  """The one document of a text file, character by character as it is there.

  Raises:
    ValueError: if it is empty or not UTF-8.
  """
  text = _decode(path.read_bytes(), str(path))
  if not text:
    raise ValueError(f"{path} is empty: there is no text to learn from.")
  yield Document(str(path), text)


def read_json_lines(path: epath.Path, field: str) -> Iterator[Document]:
  """The documents of a file with one JSON object a line.

  Lines without anything, and documents of no character, are left out.

  Raises:
    ValueError: for a line that is no object with text in `field`.
  """
  for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
    if not line.strip():
      continue
    place = f"{path}, line {number}"
    try:
      record = json.loads(_decode(line, place))
    except json.JSONDecodeError as error:
      raise ValueError(f"{place} is not JSON: {error}.") from error
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
      fields = ", ".join(record) if isinstance(record, dict) else "no object"
      raise ValueError(
        f"{place} has no text in field={field!r}; its fields: {fields}."
      )
    text = record[field]
    if not text.isascii():
      _check_characters(text, place)
    if text:
      yield Document(place, text)


def _check_characters(text: str, place: str) -> None:
  """Refuses halves of surrogate pairs, which JSON can write but no UTF-8."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{place} has half a surrogate pair, {text[error.start]!r}, as "
      f"character {error.start} of its text."
    ) from error


def _decode(data: bytes, place: str) -> str:
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{place} is not UTF-8: byte {data[error.start]:#04x} at offset "
      f"{error.start} ({error.reason}). Convert it first, as with iconv -f "
      "latin1 -t utf-8."
    ) from error
