"""Makes moments of images, in batches on all devices, without randomness."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from input_pipeline import stream
from input_pipeline.latents import dataset
from tasks import autoencoders
from training import evaluation

# Images from which a deviation is measured, evenly over the split.
_MEASURED = 4096
# As `dataset.write_split` stores them. In float16, half the bytes, a mean is
# off by 2^-11 of itself at most, where 8 bits are 2^-9 of a pixel's range off.
DTYPES = ("float16", "float32")


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Makes records of images.

  Attributes:
    encode: maps a batch of uint8 images to float32 moments, jitted.
    mesh: that batches are spread over.
    batch_size: of these.
    dtype: of the moments in records.
    flip: whether the moments of mirrored images belong to a record.
  """

  encode: Callable[[jax.Array], jax.Array]
  mesh: jax.sharding.Mesh
  batch_size: int
  dtype: np.dtype
  flip: bool

  def records(
    self, read: "Still", config: ml_collections.ConfigDict, title: str
  ) -> Iterator[dict[str, Any]]:
    """Encodes the images of `read`, with a progress bar; not the damaged.

    Raises:
      ValueError: for moments that `dtype` cannot hold.
    """
    batches = stream.eval_batches(
      read, config, batch_size=self.batch_size, rows=None
    )
    total = -(-read.num_examples // self.batch_size)
    for batch in tqdm.tqdm(
      # None: no bar where nobody watches a terminal.
      batches,
      title,
      total,
      unit="batch",
      disable=None,
    ):
      moments = self._moments(batch["image"])
      mirrored = (
        self._moments(batch["image"][:, :, ::-1]) if self.flip else None
      )
      for row in np.flatnonzero(batch["mask"]):
        example = int(batch["index"][row]) * read.every
        record = {
          "moments": _checked(moments[row], example),
          "label": int(batch["label"][row]),
          "example": example,
        }
        if self.flip:
          record[dataset.FLIPPED] = _checked(mirrored[row], example)
        yield record

  def _moments(self, pixels: np.ndarray) -> np.ndarray:
    batch = evaluation.put_batch({"image": pixels}, self.mesh)
    with np.errstate(over="ignore"):
      return np.asarray(self.encode(batch["image"])).astype(self.dtype)


class Still:
  """A `stream.Reader` of images in which nothing is random.

  Attributes:
    num_examples: that are read.
    every: the distance of those that are.
  """

  def __init__(self, read: Any, every: int = 1):
    """Takes a reader of the image room, and which of its examples to read."""
    self.num_examples = -(-read.num_examples // every)
    self.every = every
    self._read = read

  def __call__(self, index: int, rng: np.random.Generator) -> stream.Example:
    """As `with_index`."""
    return self.with_index(index, rng)

  def with_index(self, index: int, rng: np.random.Generator) -> stream.Example:
    """The example with its number among those that are read.

    Raises:
      ValueError: if it asks for a random number.
    """
    del rng
    example = self._read.with_index(index * self.every, _NoDraws())
    real = example["index"] >= 0
    return example | {"index": np.int32(index if real else -1)}


class _NoDraws:
  """In place of a generator, where nothing may be random."""

  def __getattr__(self, name: str) -> Any:
    raise ValueError(
      "eval_transform is random, but latents are made once. Mirrored images "
      "are stored with --flip; leave out whatever else is random."
    )


def compile_encoder(
  trained: autoencoders.Trained,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> tuple[tuple[int, int, int], Callable[[jax.Array], jax.Array]]:
  """The shape of an image's moments, and what makes those of a batch.

  Raises:
    ValueError: if the images do not fit the autoencoder.
  """
  model, data = trained.model, config.data
  if getattr(model, "shift", 0):
    raise ValueError(
      f"weights are of a model with shift={model.shift}; latents are scaled "
      "only, so it must be 0."
    )

  def encode(variables, pixels):
    x = pixels.astype(jnp.float32) / 127.5 - 1
    return model.apply(variables, x, method="encode")

  side, rows = data.image_size, config.eval_batch_size
  pixels = jax.ShapeDtypeStruct((rows, side, side, data.channels), jnp.uint8)
  try:
    moments = jax.eval_shape(encode, trained.variables, pixels)
  except ValueError as error:
    raise ValueError(
      f"data.image_size={side} and data.channels={data.channels} do not fit "
      f"the autoencoder {trained.source}: {error}"
    ) from error
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  variables = jax.device_put(trained.variables, everywhere)
  return moments.shape[1:], functools.partial(jax.jit(encode), variables)


def measure_scale(
  encoder: Encoder, read: Any, config: ml_collections.ConfigDict
) -> float:
  """The inverse of the deviation of latents, sampled from their moments."""
  every = max(1, read.num_examples // _MEASURED)
  plain = dataclasses.replace(encoder, flip=False)
  records = plain.records(Still(read, every), config, "measuring")
  return 1 / _deviation(record["moments"] for record in records)


def _deviation(moments: Iterable[np.ndarray]) -> float:
  """E[x^2] = E[mean^2 + variance], of all latents together."""
  count = total = squares = 0.0
  for each in moments:
    mean, log_variance = np.split(each.astype(np.float64), 2, axis=-1)
    count += mean.size
    total += mean.sum()
    squares += (np.square(mean) + np.exp(log_variance)).sum()
  return math.sqrt(squares / count - (total / count) ** 2)


def _checked(moments: np.ndarray, example: int) -> np.ndarray:
  if not np.isfinite(moments).all():
    raise ValueError(
      f"the latents of example {example} are not finite in {moments.dtype}: "
      "try --dtype=float32, or other weights."
    )
  return moments
