"""Writes data sets that need no download as TFDS data sets."""

import contextlib
import io
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds


def prepare(builder: tfds.core.GeneratorBasedBuilder) -> None:
  """Writes what a builder makes, unless it is there.

  TFDS writes to a folder of its own and renames it when it is whole. So a
  killed process leaves nothing that looks prepared, and of several processes
  the first one wins.
  """
  if builder.data_path.exists():
    return
  with _silent(), tempfile.TemporaryDirectory() as download_dir:
    try:
      builder.download_and_prepare(
        download_dir=download_dir,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
      )
    except OSError:
      # Renaming onto a folder that another process has just finished fails.
      if not builder.data_path.exists():
        raise


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Without TFDS's progress bars and messages for data sets this small."""
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    yield
