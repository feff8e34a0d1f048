"""Files of a run, wherever they are: local paths and URLs.

Every path that a person gives goes through `path`, and every path in a command
that a person may paste through `quote`.
"""

import pathlib

from etils import epath

from storage.growing import GrowingFile
from storage.paths import absolute, is_remote, path, quote

__all__ = [
  "GrowingFile",
  "absolute",
  "is_remote",
  "path",
  "quote",
  "upload",
  "write_whole",
]


def write_whole(path: epath.Path, content: str | bytes) -> None:
  """Writes a file so that a reader sees the old one or the new one.

  Through a second name: neither a killed process nor a full disk leaves half
  a file, or takes away the one that was there. An object of a bucket needs
  none, it is there once it is whole.
  """
  content = content.encode() if isinstance(content, str) else content
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
      copy.write_bytes(file.read_bytes())
