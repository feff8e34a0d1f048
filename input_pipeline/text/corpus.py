"""The text of a config: which documents, in which split, as which tokens."""

import dataclasses
import functools
from collections.abc import Sequence

import ml_collections
import numpy as np

import storage
from input_pipeline.text import files, records, standard_library, tokenizers
from input_pipeline.text.config import check_config
from input_pipeline.text.documents import Document, describe, split_off
from input_pipeline.text.tokenizer import Tokenizer

# What of the config decides over documents and tokens.
_FIELDS = (
  *("files", "format", "field", "eval_files", "eval_share"),
  *("data_dir", "train_split", "eval_split"),
  *("tokenizer", "end_of_text", "packing"),
)


@dataclasses.dataclass(frozen=True)
class Tokens:
  """One split as tokens, in sequences that do not see each other.

  Attributes:
    ids: integers `[tokens]`.
    sizes: integers `[tokens]`, the UTF-8 bytes of each.
    starts: int64 `[sequences]`, where each begins.
    lengths: int64 `[sequences]`, the tokens of each. The end-of-text token
      between two is the last of one and the first of the next.
  """

  ids: np.ndarray
  sizes: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray


class Corpus:
  """Reads and encodes what is asked for, once."""

  def __init__(self, config: ml_collections.ConfigDict):
    """Reads nothing yet."""
    self._config = config
    self.tokens = functools.cache(self._encode)
    self._open_files = functools.cache(self._read_files)
    self._open_records = functools.cache(self._read_records)

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """Of `config.tokenizer`."""
    name = self._config.tokenizer
    documents = ()
    if name == "characters":
      documents = (*self.documents("train"), *self.documents("eval"))
    return tokenizers.create(name, documents)

  def documents(self, split: str) -> Sequence[Document]:
    """The documents of "train" or "eval".

    Raises:
      ValueError: for files, a field or a split that is not there or no text.
    """
    config = self._config
    if config.format == "tfds":
      part = config.train_split if split == "train" else config.eval_split
      return self._open_records(part)
    if split == "eval" and config.eval_files:
      return self._open_files("eval_files")
    if not config.files:
      return standard_library.documents(split)
    if config.eval_files:
      return self._open_files("files")
    parts = split_off(self._open_files("files"), config.eval_share)
    return parts[split == "eval"]

  def describe(self) -> dict[str, int | str]:
    """Number, bytes and SHA-256 of the documents that evaluation opens.

    Those to train on are among them, unless they are in files of their own.
    """
    config = self._config
    if config.format == "tfds" or config.eval_files:
      return describe(self.documents("eval"))
    if not config.files:
      splits = map(standard_library.documents, ("train", "eval"))
      return describe([document for split in splits for document in split])
    return describe(self._open_files("files"))

  def _read_files(self, field: str) -> Sequence[Document]:
    config = self._config
    paths = files.find(config[field], field)
    if config.format == "text":
      read = files.read_text
    else:
      read = functools.partial(files.read_json_lines, field=config.field)
    return _check_any(
      [document for path in paths for document in read(path)], config[field]
    )

  def _read_records(self, split: str) -> Sequence[Document]:
    documents = list(records.read(self._config, split))
    return _check_any(documents, f"{self._config.files}, split {split!r},")

  def _encode(self, split: str) -> Tokens:
    """The split encoded, for the packing of the config."""
    end = self.tokenizer.end_of_text if self._config.end_of_text else None
    between = []
    if end is not None:
      id_type = np.min_scalar_type(end)
      between = [(np.array([end], id_type), np.zeros(1, np.uint8))]
    pieces, steps = list(between), []
    for piece in self.tokenizer.encode_documents(self.documents(split)):
      pieces += [piece, *between]
      steps.append(len(piece[0]) + len(between))
    ids, sizes = map(np.concatenate, zip(*pieces, strict=True))
    steps = np.array(steps, np.int64)
    starts, lengths = np.cumsum(steps) - steps, steps + len(between)
    if self._config.packing == "stream":
      starts, lengths = np.array([0]), np.array([len(ids)])
    return Tokens(_narrow(ids), _narrow(sizes), starts, lengths)


def _narrow(values: np.ndarray) -> np.ndarray:
  """The same in the smallest type that holds them all."""
  return values.astype(np.min_scalar_type(values.max(initial=0)))


def _check_any(documents: list[Document], name: str) -> list[Document]:
  if not documents:
    raise ValueError(f"{name} has no text: every document is empty.")
  return documents


def open_corpus(config: ml_collections.ConfigDict) -> Corpus:
  """The corpus of `config.data`; what was read before is not read again.

  Raises:
    ValueError: for a config of which no rows can be made, or files that are
      not there.
  """
  check_config(config)
  values = tuple((name, config[name]) for name in _FIELDS)
  return _open(values, _stamp(config))


@functools.lru_cache(maxsize=2)
def _open(values: tuple, stamp: tuple) -> Corpus:
  del stamp  # Is there so that files which have changed are another corpus.
  return Corpus(ml_collections.FrozenConfigDict(dict(values)))


def _stamp(config: ml_collections.ConfigDict) -> tuple:
  """Size and time of each file."""
  if config.format == "tfds":
    return ()
  paths = [
    path
    for field in ("files", "eval_files")
    if config[field]
    for path in files.find(config[field], field)
  ]
  tokenizer = storage.path(config.tokenizer)
  if config.tokenizer not in tokenizers.BUILT_IN and tokenizer.is_file():
    paths.append(tokenizer)
  stats = [(str(path), path.stat()) for path in paths]
  return tuple((name, stat.length, stat.mtime) for name, stat in stats)
