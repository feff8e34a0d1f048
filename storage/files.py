"""Whole files and folders, read and written again after transient errors."""

import functools
import pathlib

from etils import epath

from storage.paths import is_remote
from storage.retrying import retry


def read_bytes(path: epath.Path) -> bytes:
  """Reads a file, again after transient errors."""
  return retry(path.read_bytes, what=f"reading {path}")


def read_bytes_if_there(path: epath.Path) -> bytes | None:
  """Reads a file, again after transient errors; None if there is none.

  It does not ask `path.exists()`, which says no of a disk that does not answer:
  what is there would be taken for new and replaced.
  """
  try:
    return read_bytes(path)
  except (FileNotFoundError, NotADirectoryError):
    return None


def make_folder(path: epath.Path) -> None:
  """Makes a folder and those above it, again after transient errors."""
  make = functools.partial(path.mkdir, parents=True, exist_ok=True)
  retry(make, what=f"making {path}")


def write_whole(path: epath.Path, content: str | bytes) -> None:
  """Writes a file so that a reader sees the old one or the new one.

  Through a second name: neither a killed process nor a full disk leaves half
  a file, or takes away the one that was there. An object of a bucket needs
  none, it is there once it is whole. Transient errors are tried again.
  """
  content = content.encode() if isinstance(content, str) else content
  retry(_write_whole, path, content, what=f"writing {path}")


def _write_whole(path: epath.Path, content: bytes) -> None:
  if is_remote(path):
    path.write_bytes(content)
    return
  partial = path.with_name(path.name + ".partial")
  partial.write_bytes(content)
  partial.replace(path)


def upload(folder: str, target: epath.Path) -> None:
  """Copies a local folder's files to `target`, with their folders."""
  for file in sorted(pathlib.Path(folder).rglob("*")):
    if file.is_file():
      copy = target / file.relative_to(folder)
      make_folder(copy.parent)
      retry(copy.write_bytes, file.read_bytes(), what=f"writing {copy}")
