"""Images per second and core of the input pipeline, beside tf.data and timm.

  python -m benchmarks.input_pipeline

All decode the same JPEGs, of 500x375 pixels and photographs' cost, in one
process and in turns, each with one thread. A figure is images per second of
CPU time, so that other load on the machine counts little; the ratio is the
median of the rounds' ratios. Peers that are not installed are left out:
TensorFlow comes with the extra `prepare`, timm with `parity`.

The stages "pipeline" read and shuffle records through TFDS, ours from
ArrayRecord and tf.data from TFRecord, and batch; timm has the JPEGs in memory.
TensorFlow's resize has no antialias unless it is asked for; timm's has always.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags

from benchmarks import flag_checks, input_peers, photographs
from input_pipeline import images
from input_pipeline.images import decode, transform_spec

_SIZE = flags.DEFINE_integer(
  "size", 224, "Side of the images in pixels.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  "batch_size", 16, "Images in a batch.", lower_bound=1
)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 0.5, "Least CPU time of one turn.")
_WORKERS = flags.DEFINE_list(
  "workers", [], "Also time the pipeline with these numbers of processes."
)
flags.register_validator(
  _WORKERS,
  lambda values: all(value.isdecimal() for value in values),
  message="workers must be numbers with commas between them",
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a row.")

_AHEAD = 4
_SAMPLED = "random_resized_crop(antialias=False)"

# What each stage does after decoding; None is nothing at all.
STAGES = {
  "decode": None,
  "crop": _SAMPLED,
  "crop antialias": "random_resized_crop",
  "augment": "random_resized_crop|flip|rand_augment(2, 15)",
  "pipeline": f"{_SAMPLED}|flip",
  "pipeline antialias": "random_resized_crop|flip",
}

_STAGES = flag_checks.define_names(
  "stages", list(STAGES), STAGES, "What to time; all by default."
)

PEERS = {
  "tf.data": input_peers.tensorflow_batches,
  "timm": input_peers.timm_batches,
}


def main(argv: Sequence[str]) -> None:
  """Prints a row for each stage and number of workers."""
  del argv
  with tempfile.TemporaryDirectory() as data_dir:
    photographs.prepare(data_dir, "array_record")
    for stage in _STAGES.value:
      _print(measure(stage, data_dir))
    for workers in _WORKERS.value:
      _print(measure_workers(int(workers), data_dir))


def measure(stage: str, data_dir: str) -> dict[str, Any]:
  """Times one stage, ours and the peers' in turns."""
  jpegs = photographs.encode_all()
  batches = {"ours": our_batches(stage, jpegs, data_dir)}
  for name, create in PEERS.items():
    try:
      peer = create(stage, jpegs, _SIZE.value, _BATCH.value)
    except ImportError:
      continue
    if peer is not None:
      batches[name] = peer
  turns = [
    {name: time_turn(it, time.process_time) for name, it in batches.items()}
    for _ in range(1 + _ROUNDS.value)
  ][1:]  # The first one compiles and fills caches.
  row: dict[str, Any] = {"stage": stage, "size": _SIZE.value}
  for name in batches:
    row[name] = statistics.median(turn[name] for turn in turns)
  for name in batches.keys() - {"ours"}:
    row[f"ratio to {name}"] = statistics.median(
      turn["ours"] / turn[name] for turn in turns
    )
  return row


def measure_workers(workers: int, data_dir: str) -> dict[str, Any]:
  """Times the pipeline with worker processes, by the clock on the wall."""
  config = data_config(STAGES["pipeline"], data_dir)
  config.num_workers = workers
  iterator = _train_iterator(config)
  try:
    rates = [
      time_turn(iterator, time.perf_counter) for _ in range(1 + _ROUNDS.value)
    ]
  finally:
    iterator.close()
  return {"workers": workers, "size": _SIZE.value} | {
    "images per second of wall time": statistics.median(rates[1:])
  }


def time_turn(batches: Iterator[Any], clock: Callable[[], float]) -> float:
  """Images per second over at least `--seconds`."""
  # tf.data makes batches ahead: those of the last turn are not for this one,
  # and those for the next turn must not be made in somebody else's.
  for _ in range(_AHEAD):
    next(batches)
  count, started = 0, clock()
  while count == 0 or clock() - started < _SECONDS.value:
    next(batches)
    count += 1
  rate = count * _BATCH.value / (clock() - started)
  time.sleep(_SECONDS.value)
  return rate


def our_batches(
  stage: str, jpegs: Sequence[bytes], data_dir: str
) -> Iterator[Any]:
  """Our batches: of the whole pipeline, or only decoded and transformed."""
  spec = STAGES[stage]
  if stage.startswith("pipeline"):
    return _train_iterator(data_config(spec, data_dir))
  rng = np.random.default_rng(0)
  if spec is None:
    load = decode.decode_image
  else:
    transform = transform_spec.create_transform(spec, image_size=_SIZE.value)

    def load(data: bytes) -> np.ndarray:
      return transform({"image": decode.EncodedImage(data)}, rng)["image"]

  examples = map(load, itertools.cycle(jpegs))
  batch_size = _BATCH.value
  return (
    np.stack([first, *itertools.islice(examples, batch_size - 1)])
    for first in examples
  )


def data_config(spec: str, data_dir: str) -> ml_collections.ConfigDict:
  """The config of a pipeline without threads or workers."""
  config = images.default_config()
  config.name = photographs.NAME
  config.data_dir = data_dir
  config.image_size = _SIZE.value
  config.train_transform = spec
  config.num_threads = 0
  return config


def _train_iterator(config: ml_collections.ConfigDict) -> Iterator[Any]:
  return images.train_iterator(config, seed=0, global_batch_size=_BATCH.value)


def _print(row: dict[str, Any]) -> None:
  if _JSON.value:
    print(json.dumps(row), flush=True)
    return
  values = [
    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
    for name, value in row.items()
  ]
  print(", ".join(values), flush=True)


if __name__ == "__main__":
  app.run(main)
