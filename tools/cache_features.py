r"""Runs a frozen trunk over images once, for probes to learn from its maps.

  python -m tools.cache_features --config=configs/probing.py:digits \
    --config.init.weights=runs/trunk --out=features
  python train.py --config=configs/probing.py:digits --workdir=runs/probe \
    --config.init.weights=runs/trunk --config.data.features=features

The trunk and its weights are those of the config, `init.weights` or, without,
what its seed draws; images are as `data.eval_transform` makes them. Splits are
those that the config trains and evaluates on, under their names, slices too;
one that is there already is left as it is, and one is there only when it is
whole. A map of 196 tokens of 768 channels takes 0.3 MB an image in float16: all
of ImageNet would be 400 GB, where the trunk may as well run in each step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm
from absl import flags

import experiment
import storage
from experiment import weights
from input_pipeline import features
from input_pipeline.features import folder
from training import checkpoints, cli, console, evaluation


def cache_features(
  config: ml_collections.ConfigDict, out: str, *, dtype: str = "float16"
) -> None:
  """Writes the splits that are not there.

  Args:
    config: of the task "probing"; `data.features` is not looked at.
    out: the folder.
    dtype: of what is stored, one of `folder.DTYPES`.

  Raises:
    ValueError: for fields that do not fit, before any image is read, and for a
      split that is there and was made in another way.
  """
  config = _checked(config, dtype)
  setup = experiment.create_evaluation(config)
  task = setup.task
  record = features.Record(
    shapes=tuple(task.map_shapes()),
    dtype=dtype,
    class_names=tuple(task.info.class_names),
    made=task.made_by(),
  )
  splits = _missing(config.data, out, record)
  if not splits:
    return
  with jax.set_mesh(setup.mesh):
    init = config.init
    variables = weights.load_weights(
      setup,
      init.weights or "random",
      step=init.step,
      use_ema=init.ema,
      replace_head=init.replace_head,
      resize_tables=init.resize_tables,
      part=init.part,
    )
    run = jax.jit(task.features)
    for split in splits:
      data = config.data.copy_and_resolve_references()
      data.eval_split = split
      written = features.write_split(
        out,
        split,
        record,
        _batches(setup, data, lambda batch: run(variables, batch)),
        most=features.dataset_info(data).num_eval_examples,
      )
      console.say(f"{split}: features of {written.examples:,} examples")
  size = sum(np.prod(shape) for shape in record.shapes)
  console.say(
    f"{size * np.dtype(dtype).itemsize / 1e3:,.1f} kB an example; train on "
    f"them with --config.data.features={storage.quote(out)}"
  )


def _checked(
  config: ml_collections.ConfigDict, dtype: str
) -> ml_collections.ConfigDict:
  """The config for images, whatever features it has."""
  if config.task != "probing":
    raise ValueError(f"task is {config.task!r}; it must be 'probing'.")
  if dtype not in folder.DTYPES:
    raise ValueError(
      f"dtype is {dtype!r}; it must be {' or '.join(folder.DTYPES)}."
    )
  if jax.process_count() > 1:
    raise ValueError(
      f"features are cached by one process, and there are "
      f"{jax.process_count()}."
    )
  config = config.copy_and_resolve_references()
  config.data.features = ""
  return config


def _missing(
  data: ml_collections.ConfigDict, out: str, record: features.Record
) -> list[str]:
  """The splits that are to be made.

  Raises:
    ValueError: if one is there that was made in another way.
  """
  missing = []
  for split in dict.fromkeys((data.train_split, data.eval_split)):
    there = folder.find_record(out, split)
    if there is None:
      missing.append(split)
      continue
    for field in ("made", "shapes", "dtype", "class_names"):
      have, wanted = getattr(there, field), getattr(record, field)
      if have != wanted:
        raise ValueError(
          f"split {split!r} in {out!r} has {field} {have}, not {wanted}: give "
          "another --out, or delete what is there."
        )
    console.say(f"{split} is there already")
  return missing


def _batches(
  setup: experiment.Evaluation,
  data: ml_collections.ConfigDict,
  run: Callable[[Any], list[jax.Array]],
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
  """The maps and labels of the images of a split, without the damaged."""
  rows = setup.config.eval_batch_size
  spec = setup.task.batch_spec(rows, train=True)
  batches = features.eval_batches(data, batch_size=rows)
  total = -(-features.dataset_info(data).num_eval_examples // rows)
  # None: no bar where nobody watches a terminal.
  for batch in tqdm.tqdm(
    batches, data.eval_split, total, unit="batch", disable=None
  ):
    if batch["label"].ndim > 1:
      raise ValueError(
        f"label: {data.label!r} of {data.name!r} is a sequence of labels, of "
        "which no features are kept."
      )
    kept = batch["mask"] > 0
    put = evaluation.put_batch({name: batch[name] for name in spec}, setup.mesh)
    maps = [np.asarray(x, np.float32)[kept] for x in run(put)]
    yield maps, batch["label"][kept]


def main(argv: Sequence[str]) -> None:
  """Reads the flags and runs the trunk."""
  del argv
  args = flags.FLAGS
  cache_features(args.config, args.out, dtype=args.dtype)


if __name__ == "__main__":
  cli.define_config_flag(
    experiment.optional_fields, load_run=experiment.load_config
  )
  flags.DEFINE_string("out", None, "The folder to write.")
  flags.DEFINE_string("dtype", "float16", "Of what is stored, or float32.")
  flags.mark_flags_as_required(["config", "out"])
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
