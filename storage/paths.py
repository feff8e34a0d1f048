"""Paths as people write them: local ones and URLs."""

import os
import shlex

from etils import epath


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
