"""English and source text that every installation of Python has.

The documentation strings and comments of the standard library's modules, a
document a module, and the topics of Python's help: some 3 MB, which need no
download. They are a function of Python's version.
"""

import functools
import inspect
import os
import re
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

from input_pipeline.text.documents import Document

# One module in so many is for evaluation.
_PARTS = 10
# What not every installation has, what is installed beside it, and modules
# without sentences: tests, and tables of characters.
_LEFT_OUT = frozenset(
  [
    *("__pycache__", "dist-packages", "site-packages", "test", "tests"),
    *("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"),
    *("encodings", "pydoc_data"),
  ]
)
# Strings are matched too, as a # in one of them begins no comment.
_PIECES = re.compile(
  r"(?P<comment>\#[^\n]*)"
  r"|(?P<string>[rRuUbBfF]{0,2}"
  r"(?P<quotes>\"\"\"|''')(?P<inside>(?:[^\\]|\\.)*?)(?P=quotes))"
  r"|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'",
  re.DOTALL,
)


@functools.cache
def documents(split: str) -> tuple[Document, ...]:
  """The documents of "train" or "eval", in the order of their names.

  Which of the two a module is in depends on its name only, so that it stays
  there in another version of Python.
  """
  whole = (*_read_modules(), Document("pydoc_data.topics", _read_topics()))
  return tuple(
    document
    for document in whole
    if (zlib.crc32(document.name.encode()) % _PARTS == 0) == (split == "eval")
  )


def _read_topics() -> str:
  return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _read_modules() -> Iterator[Document]:
  folder = Path(sysconfig.get_paths()["stdlib"])
  for path in sorted(_list_modules(folder)):
    with tokenize.open(path) as file:
      text = extract(file.read())
    if text:
      yield Document(
        ".".join(path.relative_to(folder).with_suffix("").parts), text
      )


def _list_modules(folder: Path) -> Iterator[Path]:
  for entry in os.scandir(folder):
    path = folder / entry.name
    if entry.is_dir():
      # config-3.12-... says how Python was built here.
      if entry.name not in _LEFT_OUT and not entry.name.startswith("config-"):
        yield from _list_modules(path)
    elif path.suffix == ".py" and not entry.name.startswith("_sysconfigdata"):
      yield path


def extract(source: str) -> str:
  """The documentation strings and comments of a module's source, in order.

  Comments on lines that follow each other stay together; between other pieces
  is an empty line.
  """
  pieces, end = [], 0
  for match in _PIECES.finditer(source):
    if match["comment"]:
      between = source[end : match.start()]
      near = pieces and pieces[-1].startswith("#") and not between.strip()
      pieces += ["\n" if near and between.count("\n") == 1 else "\n\n"]
      pieces += [match["comment"]]
    elif match["string"] and _begins_line(source, match.start()):
      pieces += ["\n\n", inspect.cleandoc(match["inside"])]
    else:
      continue
    end = match.end()
  return "".join(pieces[1:]) + "\n" if pieces else ""


def _begins_line(source: str, position: int) -> bool:
  return not source[source.rfind("\n", 0, position) + 1 : position].strip()
