"""Files of a run, wherever they are: local paths and URLs."""

from etils import epath


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a text file so that a reader sees the old one or the new one.

  Through a second name: neither a killed process nor a full disk leaves half
  a file, or takes away the one that was there.
  """
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text)
  partial.replace(path)
