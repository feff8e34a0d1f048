"""Files of a run, wherever they are: local paths and URLs.

Every path that a person gives goes through `path`, and every path in a command
that a person may paste through `quote`.
"""

import os
import pathlib
import shlex

from etils import epath

from storage.growing import GrowingFile

__all__ = [
  "GrowingFile",
  "absolute",
  "is_remote",
  "path",
  "quote",
  "upload",
  "write_whole",
]


def path(text: str | os.PathLike) -> epath.Path:
  """A path as a person writes it: `~` is the home folder, URLs stay URLs.

  Raises:
    ValueError: for a URL of a kind that cannot be read.
  """
  text = os.fspath(text)
  try:
    return epath.Path(text).expanduser()
  except KeyError as error:
    raise ValueError(
      f"{text!r} is a URL of an unknown kind: a path is local, or begins with "
      "gs://, s3://, az:// or hf://."
    ) from error


def quote(path: str | os.PathLike) -> str:
  """The path as one word of a shell, for commands that are printed."""
  return shlex.quote(os.fspath(path))


def absolute(path: epath.Path) -> epath.Path:
  """The same place, whatever the current folder; URLs are so already."""
  return path if is_remote(path) else path.resolve()


def is_remote(path: epath.Path) -> bool:
  """Whether it is a URL: objects there appear whole and cannot grow."""
  return "://" in os.fspath(path)


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a text file so that a reader sees the old one or the new one.

  Through a second name: neither a killed process nor a full disk leaves half
  a file, or takes away the one that was there. An object of a bucket needs
  none, it is there once it is whole.
  """
  if is_remote(path):
    path.write_text(text)
    return
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text)
  partial.replace(path)


def upload(folder: str, target: epath.Path) -> None:
  """Copies a local folder's files to `target`, with their folders."""
  for file in sorted(pathlib.Path(folder).rglob("*")):
    if file.is_file():
      copy = target / file.relative_to(folder)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(file.read_bytes())
