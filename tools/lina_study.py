r"""LINA against softmax, and its ablations: trains, evaluates and tabulates.

  python -m tools.lina_study --out=runs/lina_study \
    --report=docs/results/lina.md

Each run is a folder of `--out`, and what was measured is a line of its
`results.jsonl`; what is there, of the same config, is not done again, and a run
that was stopped goes on. The tables are printed, and put in place of those of
`--report`, beside which the lines are copied. `--variant=test` is a small one.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

import experiment
import storage
from configs import lina
from eval import evaluate
from experiment.weights import load_weights
from sample_metrics import features, measure, nearness, reference
from tasks import image_decoding, image_sampling
from tools import lina_tables, study, study_command
from tools.lina_tables import Row
from training import console

GUIDANCE = (1.0, 2.4)
# Raw weights are judged too: an average may lag behind in a short run.
AVERAGED = (True, False)


def make_config(variant: str, row: Row, seed: int) -> ml_collections.ConfigDict:
  """The config of a run.

  Raises:
    ValueError: if there is no such variant.
  """
  config = lina.get_config(variant)
  config.seed = seed
  config.model.update(row.fields)
  for field in ("train_for", "evaluate_every"):
    config[field] = _shortened(config[field], row.share)
  every = config.checkpoint.every
  config.checkpoint.every = _shortened(every, row.share)
  return config


def _shortened(duration: str, share: int) -> str:
  number, unit = duration.split()
  return f"{max(int(number) // share, 1)} {unit}"


def run(
  out: epath.Path, variant: str, seeds: Sequence[int], samples: int
) -> list[dict[str, Any]]:
  """Does what is not done, and returns all that was measured of the variant.

  Args:
    out: the folder of runs and results.
    variant: of `configs.lina`.
    seeds: of the runs of each row.
    samples: of each evaluation.
  """
  results = study.Results(out / "results.jsonl", "lina_study")
  keys = []

  def note(key, make):
    keys.append(key)
    results.find_or_make(key, make)

  data = lina.get_config(variant).data
  note(
    {"what": "real", "most": samples, "config": study.digest(data)},
    lambda: _measure_real(data, samples),
  )
  for row, seed in itertools.product(lina_tables.ROWS, seeds):
    config = make_config(variant, row, seed)
    workdir = str(out / f"{variant}_{row.slug}_{seed}")
    key = {"table": row.table, "row": row.name, "seed": seed}
    key["config"] = study.digest(config)
    note(
      {"what": "run", **key}, lambda c=config, w=workdir: study.train(c, w)[1]
    )
    if row.table == "main":
      key_of_copies = {"what": "copies", **key, "samples": samples}
      note(key_of_copies, lambda c=config, w=workdir: _compare(c, w, samples))
    for averaged, guidance in itertools.product(AVERAGED, GUIDANCE):
      made_with = {
        "averaged": averaged,
        "guidance": guidance,
        "steps": config.sampling.steps,
        "flow_steps": config.sampling.flow_steps,
        "samples": samples,
      }
      note(
        {"what": "samples", **key, **made_with},
        lambda c=config, w=workdir, m=made_with: _evaluate(c, w, m),
      )
  # Lines of other configs, of a study before this one, are not tabulated.
  return [
    row
    for row in results.rows
    if any(key.items() <= row.items() for key in keys)
  ]


def _evaluate(
  config: ml_collections.ConfigDict, workdir: str, made_with: Mapping[str, Any]
) -> dict[str, Any]:
  result = evaluate(
    config,
    workdir,
    use_ema=made_with["averaged"],
    guidance=str(made_with["guidance"]),
    num_samples=made_with["samples"],
  )
  # The key's is that of the run.
  return {"sampling_seed": result.pop("seed"), **result}


def _compare(
  config: ml_collections.ConfigDict, workdir: str, samples: int
) -> dict[str, Any]:
  """The control: whether samples are copies of training images."""
  setup = experiment.create_evaluation(config)
  task = setup.task
  with jax.set_mesh(setup.mesh):
    variables = load_weights(setup, workdir)
    made = image_sampling.images(
      task.model,
      variables,
      np.arange(samples, dtype=np.int32) % task.model.num_classes,
      image_decoding.create(task.model, variables, task.info),
      **config.sampling,
    )
  training, held_out = (
    np.concatenate([i for i, _ in reference.examples(config.data, split)])
    for split in (config.data.train_split, config.data.eval_split)
  )
  return {**config.sampling, **nearness(made, training, held_out)}


def _measure_real(
  data: ml_collections.ConfigDict, samples: int
) -> dict[str, Any]:
  """The figures of real images: what samples could be at best."""
  network = features.create("", data)
  held_out = reference.of_split(data, network)
  images, labels = (
    np.concatenate(parts)[:samples]
    for parts in zip(*reference.examples(data, data.train_split), strict=True)
  )
  return measure(images, labels, network, held_out)


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, does what is left to do and tabulates."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder of the runs")
  parser.add_argument("--report", help="Markdown file with marks for tables")
  parser.add_argument("--variant", default="digits", help="of configs/lina.py")
  parser.add_argument(
    "--seeds", type=int, nargs="+", default=study_command.SEEDS
  )
  parser.add_argument("--samples", type=int, default=1000)
  args = parser.parse_args(argv)
  with study_command.results_in(args.out) as out:
    measured = run(out, args.variant, args.seeds, args.samples)
    tables = lina_tables.tables(measured)
    for name, table in tables.items():
      console.say(f"\n{name}\n\n{table}")
    if args.report:
      report = storage.path(args.report)
      study.write_tables(report, tables)
      study.write_lines(report.with_suffix(".jsonl"), measured)


if __name__ == "__main__":
  study_command.quiet()
  main()
