"""Files of a run, wherever they are: local paths and URLs.

Every path that a person gives goes through `path`, and every path in a command
that a person may paste through `quote`.
"""

import pathlib

from etils import epath

from storage.growing import GrowingFile
from storage.paths import absolute, is_remote, path, quote
from storage.retrying import is_transient, retry

__all__ = [
  "GrowingFile",
  "absolute",
  "is_remote",
  "is_transient",
  "path",
  "quote",
  "read_bytes",
  "retry",
  "upload",
  "write_whole",
]


def read_bytes(path: epath.Path) -> bytes:
  """Reads a file, again after transient errors."""
  return retry(path.read_bytes, what=f"reading {path}")


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
      copy.parent.mkdir(parents=True, exist_ok=True)
      retry(copy.write_bytes, file.read_bytes(), what=f"writing {copy}")
