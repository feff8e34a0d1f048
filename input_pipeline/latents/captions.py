"""Texts that were encoded before, in one .npz file, and whose they are."""

import dataclasses
import functools
import io
from collections.abc import Sequence

import numpy as np
from etils import epath

import storage
from input_pipeline import stream


@dataclasses.dataclass(frozen=True)
class Captions:
  """Encoded texts, each of a class or of an example.

  Attributes:
    text: floating [captions, tokens, width]; what is after a text's length may
      be anything.
    lengths: int32 [captions], the tokens of each.
    label: integers [captions]: the class that each is of; or None.
    example: integers [captions]: the place in its split of the image that each
      is of; or None. A class or an example may have several.
    split: strings [captions]: that split of the images; or None.
  """

  text: np.ndarray
  lengths: np.ndarray
  label: np.ndarray | None = None
  example: np.ndarray | None = None
  split: np.ndarray | None = None

  @property
  def text_shape(self) -> tuple[int, int]:
    """Tokens and width."""
    return self.text.shape[1:]

  def find_owners(
    self,
    class_names: Sequence[str],
    split: str | None,
    num_examples: int,
    classes: Sequence[int] = (),
  ) -> tuple[str, np.ndarray]:
    """Says which number of an example finds its captions.

    Args:
      class_names: of the images.
      split: of the images, without slices; None if their places in it are not
        known.
      num_examples: that captions are needed for.
      classes: which labels of the data set these classes are; () for all.

    Returns:
      "label" or "example", and of each caption that number, or -1 if it is of
      another split.

    Raises:
      ValueError: if a class has no caption, or there are fewer examples with
        captions than `num_examples`.
    """
    if self.example is None:
      return "label", self._labels(class_names, classes)
    if split is None:
      raise ValueError(
        "text has captions of examples, which only latents know by number: "
        "encode the images with tools.encode_latents, or give captions of "
        "classes."
      )
    owners = np.where(self.split == split, self.example, -1)
    if (found := len(np.unique(owners[owners >= 0]))) < num_examples:
      raise ValueError(
        f"text has captions of {found} examples of split {split!r}, but "
        f"{num_examples} are read."
      )
    return "example", owners

  def _labels(
    self, class_names: Sequence[str], classes: Sequence[int]
  ) -> np.ndarray:
    count = len(class_names)
    if self.label is None:
      if len(self.text) != count:
        raise ValueError(
          f"text has {len(self.text)} captions and does not say whose they "
          f"are, so it must have one for each of the {count} classes; or add "
          "label [captions], or example and split, to the file."
        )
      return np.arange(count)
    labels = self.label
    if classes:
      fits = labels[:, None] == np.array(classes)[None, :]
      labels = np.where(fits.any(1), fits.argmax(1), -1)
    absent = np.setdiff1d(np.arange(count), labels)
    if absent.size:
      raise ValueError(
        f"text has no caption of {absent.size} classes of {count}, first of "
        f"all {absent[0]}, {class_names[absent[0]]!r}."
      )
    return labels


def save(path: epath.Path, captions: Captions, **notes: np.ndarray) -> None:
  """Writes captions, and notes of any names that `load` leaves out."""
  arrays = {k: v for k, v in vars(captions).items() if v is not None}
  buffer = io.BytesIO()
  np.savez(buffer, **arrays, **notes)
  storage.write_whole(path, buffer.getvalue())


def load(path: str) -> Captions:
  """Reads an .npz file, the same one only once while it does not change.

  Args:
    path: of a file with `text`, and of the other attributes of `Captions` what
      there is. Without lengths all tokens are text.

  Raises:
    ValueError: if it is no such file.
  """
  file = storage.path(path)
  if not file.is_file():
    raise ValueError(
      f"text: {path!r} does not exist (looked for {storage.absolute(file)}). "
      "Make it with tools.encode_text."
    )
  stat = file.stat()
  return _load(path, (stat.length, stat.mtime))


@functools.lru_cache(maxsize=2)
def _load(path: str, stamp: tuple) -> Captions:
  del stamp
  names = {field.name for field in dataclasses.fields(Captions)}
  try:
    with np.load(io.BytesIO(storage.path(path).read_bytes())) as arrays:
      found = {name: arrays[name] for name in arrays.files if name in names}
  except (ValueError, OSError, AttributeError) as error:
    raise ValueError(f"text: {path!r} is no .npz of arrays: {error}") from error
  _check(path, found)
  text = found["text"]
  default = np.full(len(text), text.shape[1])
  found["lengths"] = found.get("lengths", default).astype(np.int32)
  return Captions(**found)


def _check(path: str, found: dict[str, np.ndarray]) -> None:
  text = found.get("text")
  if (
    text is None or text.ndim != 3 or not np.issubdtype(text.dtype, np.floating)
  ):
    have = "none" if text is None else f"{text.dtype} of {text.shape}"
    raise ValueError(
      f"text: {path!r} needs floating text [captions, tokens, width], but has "
      f"{have}."
    )
  for name, array in found.items():
    if len(array) != len(text) or (name != "text" and array.ndim != 1):
      raise ValueError(
        f"text: {name} in {path!r} has shape {array.shape}, but must have "
        f"({len(text)},), a number for each caption."
      )
  lengths = found.get("lengths")
  if lengths is not None and not (
    0 <= lengths.min() <= lengths.max() <= text.shape[1]
  ):
    raise ValueError(
      f"text: lengths in {path!r} are {lengths.min()} to {lengths.max()}, but "
      f"must be from 0 to the {text.shape[1]} tokens that there are."
    )
  if ("example" in found) != ("split" in found):
    raise ValueError(
      f"text: {path!r} must have both of example and split, or neither."
    )


class WithCaptions:
  """A `stream.Reader` whose examples have a text.

  To train, one of an example's captions is drawn; to evaluate, it is the first.

  Attributes:
    num_examples: that can be read.
  """

  def __init__(
    self, read: stream.Reader, captions: Captions, by: str, owners: np.ndarray
  ):
    """Takes what `Captions.find_owners` returned."""
    self.num_examples = read.num_examples
    self._read, self._captions, self._by = read, captions, by
    self._order = np.argsort(owners, kind="stable")
    self._owners = owners[self._order]

  def __call__(self, index: int, rng: np.random.Generator) -> stream.Example:
    """The example, with a caption of its own.

    Raises:
      ValueError: if it has none.
    """
    example = self._read(index, rng)
    return example | self._caption(self._choose(example, rng))

  def with_index(self, index: int, rng: np.random.Generator) -> stream.Example:
    """The example with its index and its first caption; none for padding."""
    example = self._read.with_index(index, rng)
    if example["index"] < 0:
      blank = np.zeros(self._captions.text_shape, np.float32)
      return example | {"text": blank, "text_length": np.int32(0)}
    return example | self._caption(self._choose(example, None))

  def _choose(
    self, example: stream.Example, rng: np.random.Generator | None
  ) -> int:
    owner = example[self._by]
    first, end = np.searchsorted(self._owners, [owner, owner + 1])
    if first == end:
      raise ValueError(f"text has no caption of {self._by} {owner}.")
    return self._order[first if rng is None else rng.integers(first, end)]

  def _caption(self, row: int) -> stream.Example:
    return {
      "text": self._captions.text[row].astype(np.float32),
      "text_length": self._captions.lengths[row],
    }
