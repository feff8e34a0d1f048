"""Batches of patches to train on, and whole pairs to evaluate."""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import ml_collections
import numpy as np

from input_pipeline import stream
from input_pipeline.restoration import degradations, patches, sources
from input_pipeline.restoration.config import check_config
from input_pipeline.restoration.sources import Pair
from input_pipeline.stream import Example

# Of what is random in degradations of whole images.
_EVAL_SEED = 0


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What must be known of pairs before they are read.

  Attributes:
    num_eval_examples: pairs to evaluate.
    scale: sides of a clean image over those of a degraded one.
    patch_size: sides of a degraded patch.
    degradations: of pairs to evaluate, as `Pair` has them.
    num_train_examples: patches of an epoch; None if nobody has looked.
  """

  num_eval_examples: int
  scale: int
  patch_size: int
  degradations: tuple[str, ...]
  num_train_examples: int | None = None


@dataclasses.dataclass(frozen=True)
class _Pairs:
  """The images of a split and what degrades them.

  Attributes:
    source: of images.
    chains: to choose from; (None,) where images come degraded.
    scale: of both.
  """

  source: sources.Source
  chains: Sequence[degradations.Chain | None]
  scale: int

  def __len__(self) -> int:
    return len(self.source) * len(self.chains)

  def read(self, index: int, chain: degradations.Chain | None):
    """A clean image, and the degraded one or what makes it."""
    clean, degraded = self.source.read(index)
    if chain is None:
      _check_pair(self.source.name(index), clean, degraded, self.scale)
      return clean, degraded
    return clean, chain

  def pair(self, number: int) -> Pair:
    """The pair of one image and one chain."""
    index, choice = divmod(number, len(self.chains))
    chain = self.chains[choice]
    clean, degraded = self.read(index, chain)
    name = self.source.name(index)
    if chain is None:
      return Pair(name, degraded, clean)
    clean = patches.whole(clean, self.scale)
    if not clean.size:
      raise ValueError(f"{name} has no {self.scale} pixels each way.")
    rng = np.random.default_rng((_EVAL_SEED, index, choice))
    made = chain(clean, rng, patches.place_of(clean.shape[:2]))
    return Pair(name, made, clean, chain.spec)


def _check_pair(name, clean, degraded, scale) -> None:
  sides = tuple(scale * side for side in degraded.shape[:2])
  if clean.shape[:2] != sides:
    raise ValueError(
      f"{name} is {clean.shape[0]} x {clean.shape[1]} pixels, but its degraded "
      f"image {degraded.shape[0]} x {degraded.shape[1]}: at scale {scale} it "
      f"must be {sides[0]} x {sides[1]}."
    )


def _open(config: ml_collections.ConfigDict, stream_name: str) -> _Pairs:
  check_config(config)
  source = sources.open_source(config, stream_name)
  chains = (None,)
  if not source.paired:
    chains = tuple(
      degradations.create(spec, config.scale) for spec in config.degradations
    )
    if not chains:
      raise ValueError(
        f"degradations is empty, but name={config.name!r} has clean images "
        "only, of which something must make degraded ones."
      )
  return _Pairs(source, chains, config.scale)


class _Reader:
  """Makes patches; see `stream.Reader`."""

  def __init__(self, pairs: _Pairs, config: ml_collections.ConfigDict, count):
    self.num_examples = count
    self._pairs = pairs
    self._cutter = patches.Cutter(
      config.scale, config.patch_size, config.flips, config.rotations
    )

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    chains = self._pairs.chains
    chain = chains[int(rng.integers(len(chains)))]
    images = self._pairs.read(index % len(self._pairs.source), chain)
    return self._cutter.random(*images, rng)

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """The patch in the middle; padding after the last one."""
    there = index < self.num_examples
    image, choice = divmod(index if there else 0, len(self._pairs.chains))
    images = self._pairs.read(image, self._pairs.chains[choice])
    return self._cutter.middle(*images, rng) | {
      "index": np.int32(index if there else -1),
      "mask": np.float32(there),
    }


def dataset_info(config: ml_collections.ConfigDict) -> DatasetInfo:
  """Opens the images to evaluate, and no others, to see.

  Raises:
    ValueError: for images that are not there or fields that do not fit.
  """
  pairs = _open(config, "eval")
  return DatasetInfo(
    num_eval_examples=len(pairs),
    scale=config.scale,
    patch_size=config.patch_size,
    degradations=tuple(chain.spec if chain else "" for chain in pairs.chains),
  )


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Patches of an epoch: opens the images to train on to see."""
  return len(_open(config, "train").source) * config.repeat


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled patches: the rows of this process.

  Each image is in an epoch `repeat` times, each time with a place, a
  degradation, and a mirroring and turn of its own.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the order and of what is random in a patch.
    global_batch_size: patches in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts: degraded uint8 `[local_batch, patch_size, patch_size,
    3]` and clean uint8 `[local_batch, scale * patch_size, scale * patch_size,
    3]`.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit.
      From the iterator, for an image of TFDS that is too small.
    DamagedImageError: from the iterator.
  """
  pairs = _open(config, "train")
  return stream.train_iterator(
    _Reader(pairs, config, len(pairs.source) * config.repeat),
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
  """The patch in the middle of each pair: the rows of this process.

  For a quick look; figures to compare are those of `eval_pairs`.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: patches in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts as `train_iterator` has them, and index int32 and mask
    float32, both `[local_batch]`. Padding has index -1 and mask 0. It can be
    iterated again.

  Raises:
    ValueError, DamagedImageError: as `train_iterator`.
  """
  pairs = _open(config, "eval")
  reader = _Reader(pairs, config, len(pairs))
  return stream.eval_batches(reader, config, batch_size=batch_size, rows=rows)


def num_eval_pairs(config: ml_collections.ConfigDict) -> int:
  """How many pairs `eval_pairs` has.

  Raises:
    ValueError: as `eval_pairs`.
  """
  return len(_open(config, "eval"))


def eval_pairs(config: ml_collections.ConfigDict) -> Iterator[Pair]:
  """Whole images of any size, one by one, always the same.

  Clean ones that are degraded here lose what `scale` leaves over, below and on
  the right. With several degradations, each image comes with each.

  Args:
    config: `config.data`, see `config.default_config`.

  Raises:
    ValueError: for images that are not there or fields that do not fit; before
      any is read.
    DamagedImageError: from the iterator.
  """
  pairs = _open(config, "eval")
  return (pairs.pair(number) for number in range(len(pairs)))
