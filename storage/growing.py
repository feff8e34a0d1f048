"""A file that is written at its end, also where files cannot grow."""

from typing import BinaryIO

from etils import epath

from storage.files import read_bytes_if_there
from storage.paths import is_remote
from storage.retrying import retry


class GrowingFile:
  """Takes bytes one after another; `flush` makes them seen.

  An object of a bucket can only be replaced. There the whole content is kept
  in memory and put in its place by each flush, again after transient errors.
  """

  def __init__(self, path: epath.Path, *, append: bool = False):
    """Opens the file.

    Args:
      path: local or a URL; its folder exists.
      append: keep what is there.

    Raises:
      OSError: if it cannot be written.
    """
    self._path = path
    self._file: BinaryIO | None = None
    self._content = bytearray()
    self._grows = not is_remote(path)
    if self._grows:
      self._file = path.open("ab" if append else "wb")
    elif append:
      self._content += read_bytes_if_there(path) or b""

  @property
  def grows(self) -> bool:
    """Whether a flush costs no more than what was written since the last."""
    return self._grows

  def write(self, data: bytes) -> None:
    """Adds to the end; may not be seen before the next flush."""
    if self._grows:
      self._file.write(data)
    else:
      self._content += data

  def flush(self) -> None:
    """Makes all that was written seen by others."""
    if self._grows:
      # What was not written yet stays in its buffer.
      retry(self._file.flush, what=f"writing {self._path}")
    else:
      content = bytes(self._content)
      retry(self._path.write_bytes, content, what=f"writing {self._path}")

  def close(self) -> None:
    """Flushes and closes."""
    if self._grows:
      self._file.close()
    else:
      self.flush()
