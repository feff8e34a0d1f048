"""Files of a run, wherever they are: local paths and URLs.

Every path that a person gives goes through `path`, and every path in a command
that a person may paste through `quote`.
"""

from storage.files import (
  make_folder,
  read_bytes,
  read_bytes_if_there,
  upload,
  write_whole,
)
from storage.growing import GrowingFile
from storage.paths import absolute, is_remote, path, quote
from storage.retrying import is_transient, retry

__all__ = [
  "GrowingFile",
  "absolute",
  "is_remote",
  "is_transient",
  "make_folder",
  "path",
  "quote",
  "read_bytes",
  "read_bytes_if_there",
  "retry",
  "upload",
  "write_whole",
]
