"""Batches of pixels or latents for generators, with labels and texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import ml_collections

import storage
from input_pipeline import images, stream
from input_pipeline.images.class_subset import ClassSubset
from input_pipeline.images.source import Source
from input_pipeline.latents import captions, dataset
from input_pipeline.latents.config import check_image_fields
from input_pipeline.latents.reader import LatentReader


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What must be known of a data set before it is read.

  Attributes:
    num_eval_examples: in the evaluation split.
    class_names: by label.
    image_shape: height, width and channels of the images, in pixels.
    latent_shape: height, width and channels of latents; None for pixels.
    scale: what latents are multiplied by for a deviation of about one.
    autoencoder: where the weights that decode latents are; "" for pixels.
    fingerprint: of the weights that encoded them; "" for pixels.
    text_shape: tokens and width of texts; None if there are none.
    many_labels: whether an image to evaluate may have several labels.
    num_train_examples: in the training split; None if nobody has looked.
  """

  num_eval_examples: int
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  latent_shape: tuple[int, int, int] | None = None
  scale: float = 1.0
  autoencoder: str = ""
  fingerprint: str = ""
  text_shape: tuple[int, int] | None = None
  many_labels: bool = False
  num_train_examples: int | None = None


def dataset_info(config: ml_collections.ConfigDict) -> DatasetInfo:
  """Opens the evaluation split, and no other, to see.

  Raises:
    ValueError: for data that are not there or fields that do not fit.
  """
  texts = {}
  if config.text:
    texts["text_shape"] = captions.load(config.text).text_shape
  if not config.latents:
    _check_pixels(config)
    info = images.dataset_info(config)
    return DatasetInfo(
      num_eval_examples=info.num_eval_examples,
      class_names=info.class_names,
      image_shape=(config.image_size, config.image_size, config.channels),
      many_labels=info.many_labels,
      **texts,
    )
  folder = _open_folder(config)
  opened, _, _ = _open_split(folder, config, config.eval_split)
  return DatasetInfo(
    num_eval_examples=len(opened),
    class_names=opened.class_names,
    image_shape=folder.encoding.image_shape,
    latent_shape=folder.latent_shape,
    scale=folder.encoding.scale,
    autoencoder=config.autoencoder or folder.encoding.autoencoder,
    fingerprint=folder.encoding.fingerprint,
    **texts,
  )


def encoded_fields(config: ml_collections.ConfigDict) -> Mapping[str, Any]:
  """Fields of `config.data` that the images had which became latents.

  Raises:
    ValueError: for latents that are not there.
  """
  return _open_folder(config).encoding.fields


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Opens the training split to see how many examples it has."""
  if not config.latents:
    return images.num_train_examples(config)
  opened, _, _ = _open_split(_open_folder(config), config, config.train_split)
  return len(opened)


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled batches: the rows of this process.

  Which examples are where is as in `images.train_iterator`.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the order and of what is random in an example.
    global_batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts. Pixels are as `images.train_iterator` has them.
    Latents have moments float32 `[local_batch, height, width, 2 channels]`, the
    means and then the log variances, label and example int32 and mask float32
    `[local_batch]`; example is the place in the split of images. With a text
    there are text float32 `[local_batch, tokens, width]` and text_length int32
    `[local_batch]`, too.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit;
      before any record is read.
    DamagedImageError: as `images.train_iterator`.
  """
  return stream.train_iterator(
    _reader(config, config.train_split, train=True),
    config,
    seed=seed,
    batch_size=global_batch_size,
    rows=rows,
  )


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Every example of `eval_split` once, in order: the rows of this process.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts as `train_iterator` has them, and index as
    `images.eval_batches`. Latents are never mirrored. Padding has index -1 and
    mask 0. It can be iterated again.

  Raises:
    ValueError, DamagedImageError: as `train_iterator`.
  """
  return stream.eval_batches(
    _reader(config, config.eval_split, train=False),
    config,
    batch_size=batch_size,
    rows=rows,
  )


def _reader(
  config: ml_collections.ConfigDict, split: str, *, train: bool
) -> stream.Reader:
  """What makes the examples of a split."""
  if config.latents:
    stream.check_reading(config)
    folder = _open_folder(config)
    opened, name, mirrored = _open_split(folder, config, split)
    class_names = opened.class_names
    *sides, channels = folder.latent_shape
    shape = (*sides, 2 * channels)
    read = LatentReader(opened, shape, flip=mirrored)
  else:
    _check_pixels(config)
    read = images.train_reader(config) if train else images.eval_reader(config)
    class_names, name = read.class_names, None
  if not config.text:
    return read
  texts = captions.load(config.text)
  by, owners = texts.find_owners(
    class_names, name, read.num_examples, config.classes
  )
  return captions.WithCaptions(read, texts, by, owners)


def _open_split(
  folder: dataset.Folder, config: ml_collections.ConfigDict, split: str
) -> tuple[Source | ClassSubset, str, bool]:
  """Opens a split of latents with `config.classes` only."""
  opened, name, mirrored = folder.open_split(split)
  if config.classes:
    opened = ClassSubset(opened, config.classes)
  return opened, name, mirrored


def _open_folder(config: ml_collections.ConfigDict) -> dataset.Folder:
  """Opens the latents, if all of the config fits them."""
  folder = dataset.open_folder(config.latents)
  check_image_fields(config, folder.encoding.fields)
  recorded = folder.encoding.autoencoder
  # Where it is gone, it may have been moved: then only its weights can tell.
  if (
    config.autoencoder
    and storage.path(recorded).exists()
    and _absolute(config.autoencoder) != _absolute(recorded)
  ):
    raise ValueError(
      f"autoencoder is {config.autoencoder!r}, but latents="
      f"{config.latents!r} were made by {recorded!r}: leave autoencoder "
      "empty, or encode the images with the other one."
    )
  return folder


def _check_pixels(config: ml_collections.ConfigDict) -> None:
  if config.autoencoder:
    raise ValueError(
      f"autoencoder is {config.autoencoder!r}, but without latents it has "
      "nothing to decode: encode the images with tools.encode_latents and give "
      "their folder as latents."
    )


def _absolute(path: str) -> str:
  return str(storage.absolute(storage.path(path)))
