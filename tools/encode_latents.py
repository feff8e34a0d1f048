r"""Encodes the images of a config once, for a generator to learn latents.

  python -m tools.encode_latents --config=configs/lina.py:digits \
    --weights=runs/autoencoder --out=latents --scale=deviation
  python train.py --config=configs/lina.py:digits --workdir=runs/lina \
    --config.data.latents=latents --config.model.patch_size=1 \
    --config.model.token_dim=2

`--weights` is the workdir of an autoencoder's run, or a file as
autoencoder_sdxl:vae.safetensors. Splits are those that the config trains and
evaluates on, whole; one that is there already is left as it is, and one is
there only when it is whole. Images are as `data.eval_transform` makes them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import flags

import experiment
import storage
from input_pipeline import images
from input_pipeline.latents import dataset
from input_pipeline.latents.config import image_fields
from tasks import autoencoders
from tools.latents import encoder as encoder_lib
from training import checkpoints, cli, console, sharding


def encode_latents(
  config: ml_collections.ConfigDict,
  weights: str,
  out: str,
  *,
  flip: bool = False,
  scale: str = "model",
  dtype: str = "float16",
) -> None:
  """Writes the splits that are not there.

  Args:
    config: of which data, mesh and eval_batch_size are used.
    weights: see `autoencoders.load`.
    out: the folder.
    flip: store the latents of mirrored images as well.
    scale: "model" for the scaling factor of the model, "deviation" to measure
      that of latents and take its inverse, or a number.
    dtype: one of `encoder_lib.DTYPES`.

  Raises:
    ValueError: for options that do not fit, before any image is encoded.
  """
  splits = _splits(config.data)
  mesh = sharding.create_mesh(config.mesh)
  sharding.check_batch_size(config.eval_batch_size, mesh, "eval_batch_size")
  _check_options(config.data, scale, dtype)
  readers = {split: _open(config.data, split) for split in splits}
  trained = autoencoders.load(weights)
  shape, encode = encoder_lib.compile_encoder(trained, config, mesh)
  encoder = encoder_lib.Encoder(
    encode, mesh, config.eval_batch_size, np.dtype(dtype), flip
  )
  folder = storage.path(out)
  encoding = dataset.Encoding(
    model=trained.name,
    autoencoder=trained.source,
    fingerprint=trained.fingerprint,
    scale=0.0,
    image_shape=(config.data.image_size,) * 2 + (config.data.channels,),
    fields=image_fields(config.data),
  )
  there = dataset.find_splits(folder)
  known = _check_there(there, encoding, scale, trained.model, shape, encoder)
  if known is None:
    known = encoder_lib.measure_scale(encoder, readers[splits[0]], config.data)
  encoding = dataclasses.replace(encoding, scale=known)
  for split in splits:
    if split in there:
      console.say(f"{split} is there already")
      continue
    dataset.write_split(
      folder,
      split,
      encoding,
      readers[split].class_names,
      encoder.records(
        encoder_lib.Still(readers[split]), config.data, f"encoding {split}"
      ),
      moments_shape=shape,
      dtype=encoder.dtype,
      flipped=flip,
    )
  _report(out, shape, known)


def _splits(config: ml_collections.ConfigDict) -> list[str]:
  """The splits that the config names, without slices, the training one first.

  Each is encoded whole, so that slices act as on images.
  """
  texts = f"{config.train_split}+{config.eval_split}"
  names = [part.partition("[")[0].strip() for part in texts.split("+")]
  return list(dict.fromkeys(names))


def _check_options(
  config: ml_collections.ConfigDict, scale: str, dtype: str
) -> None:
  if dtype not in encoder_lib.DTYPES:
    raise ValueError(
      f"dtype is {dtype!r}; it must be {' or '.join(encoder_lib.DTYPES)}."
    )
  if scale not in ("model", "deviation"):
    _number(scale)
  if config.train_transform != config.eval_transform:
    raise ValueError(
      f"data.train_transform is {config.train_transform!r}, but latents are "
      "made once, of images as evaluation sees them: set it to "
      f"data.eval_transform, {config.eval_transform!r}. Mirrored images are "
      "stored with --flip."
    )


def _number(scale: str) -> float:
  try:
    value = float(scale)
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise ValueError(
      f"scale is {scale!r}; it must be model, deviation or a number above 0."
    )
  return value


def _open(config: ml_collections.ConfigDict, split: str) -> Any:
  """A reader of a whole split, with all classes: they are chosen in reading."""
  config = config.copy_and_resolve_references()
  config.train_split, config.classes = split, ()
  return images.train_reader(config)


def _check_there(
  there: dict[str, Any],
  encoding: dataset.Encoding,
  scale: str,
  model: Any,
  shape: tuple[int, int, int],
  encoder: encoder_lib.Encoder,
) -> float | None:
  """The scale, if it is known, after a look at the splits that are there.

  Raises:
    ValueError: if one of them was made in another way.
  """
  scales = {name: dataset.encoding_of(b).scale for name, b in there.items()}
  if scale == "deviation":
    known = next(iter(scales.values()), None)
  else:
    known = model.scaling_factor if scale == "model" else _number(scale)
  for name, builder in there.items():
    wanted = dataclasses.replace(encoding, scale=known)
    have = dataset.encoding_of(builder)
    difference = dataset.describe_difference(have, wanted)
    features = builder.info.features
    moments = features["moments"]
    stored = (moments.shape, moments.np_dtype, dataset.FLIPPED in features)
    asked = (shape, encoder.dtype, encoder.flip)
    if not difference and stored != asked:
      difference = f"moments, dtype and flip are {stored} and {asked}"
    if difference:
      raise ValueError(
        f"split {name!r} in the folder was made in another way: {difference}. "
        "Give another --out, or delete what is there."
      )
  return known


def _report(out: str, shape: tuple[int, int, int], scale: float) -> None:
  height, width, moments = shape
  console.say(
    f"{out} has latents of {height} x {width} x {moments // 2}, which are "
    f"multiplied by {scale:.6g}; train on them with --config.data.latents="
    f"{storage.quote(out)}"
  )


def main(argv: Sequence[str]) -> None:
  """Reads the flags and encodes."""
  del argv
  args = flags.FLAGS
  encode_latents(
    args.config,
    args.weights,
    args.out,
    flip=args.flip,
    scale=args.scale,
    dtype=args.dtype,
  )


if __name__ == "__main__":
  cli.define_config_flag(
    experiment.optional_fields, load_run=experiment.load_config
  )
  flags.DEFINE_string("weights", None, "Of the autoencoder.")
  flags.DEFINE_string("out", None, "The folder to write.")
  flags.DEFINE_bool("flip", False, "Store mirrored images too.")
  flags.DEFINE_string("scale", "model", "model, deviation or a number.")
  flags.DEFINE_string("dtype", "float16", "Of what is stored, or float32.")
  flags.mark_flags_as_required(["config", "weights", "out"])
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
