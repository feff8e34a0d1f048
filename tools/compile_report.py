"""The command line of `tools.compile_only`: a step on absent chips."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import flags

import experiment
from tools import absent_data, compiled_steps, fitting, topologies
from training import cli


def run() -> None:
  """Runs the program."""
  cli.define_config_flag(
    experiment.optional_fields, load_run=experiment.load_config
  )
  flags.DEFINE_string(
    "topology", "v5e-256", "A TPU slice, as v5e:16x16, v5e-256 or v4-32."
  )
  flags.DEFINE_integer("num_slices", 1, "Of a job over several slices.")
  flags.DEFINE_enum(
    "step", "train", list(compiled_steps.STEPS), "What to compile."
  )
  flags.DEFINE_bool("json", False, "Print one JSON object.")
  flags.DEFINE_bool(
    "fit", True, "Where it does not fit, look for what would make it fit."
  )
  flags.DEFINE_integer("num_classes", 0, "Of images that are not known here.")
  flags.DEFINE_integer("vocabulary_size", 0, "Of a tokeniser that is not here.")
  cli.run(_main)


def _main(argv: Sequence[str]) -> None:
  del argv
  args = flags.FLAGS
  if args.config is None:
    raise ValueError("Give --config: of what run.")
  # There is no chip that could run what would be kept.
  jax.config.update("jax_enable_compilation_cache", False)
  row = report(
    args.config,
    args.topology,
    step=args.step,
    num_slices=args.num_slices,
    fit=args.fit,
    num_classes=args.num_classes,
    vocabulary_size=args.vocabulary_size,
  )
  print(json.dumps(row) if args.json else describe(row))


def report(
  config: ml_collections.ConfigDict,
  topology: str,
  *,
  step: str = "train",
  num_slices: int = 1,
  fit: bool = True,
  num_classes: int = 0,
  vocabulary_size: int = 0,
) -> dict[str, Any]:
  """Compiles a step of a config, and says what it needs.

  Batches that cannot be split over the chips are made larger until they can.

  Args:
    config: of a run.
    topology: see `topologies.devices`.
    step: one of `compiled_steps.STEPS`.
    num_slices: of a job over several slices.
    fit: whether to look for what would make it fit, if it does not.
    num_classes: see `absent_data.info`, which has the next one too.
    vocabulary_size: likewise.

  Returns:
    What is printed as JSON: see `docs/pods.md`.
  """
  devices = topologies.devices(topology, num_slices)
  config, notes = fitting.with_batches_that_split(config, devices)
  info = absent_data.info(
    config, num_classes=num_classes, vocabulary_size=vocabulary_size
  )
  outcome = compiled_steps.compile_step(config, devices, info, step)
  row = {
    "model": config.model.name,
    "step": step,
    "topology": topologies.resolve(topology),
    "num_slices": num_slices,
    **summary(outcome),
    "notes": notes,
  }
  if fit and not outcome.fits:
    row["would_fit"] = fitting.search(
      config,
      devices,
      step,
      lambda changed: compiled_steps.compile_step(changed, devices, info, step),
    )
  return row


def summary(outcome: compiled_steps.Outcome) -> dict[str, Any]:
  """What is known of a step, for JSON; None for what is not."""
  chip = topologies.CHIPS.get(outcome.kind)
  found = outcome.report
  row = {
    "fits": outcome.fits,
    "chips": outcome.chips,
    "chip": chip.name if chip else outcome.kind,
    "mesh": outcome.mesh,
    "rows": outcome.rows,
    "bytes_per_chip": outcome.needed_bytes,
    "available_bytes": outcome.available_bytes,
    "argument_bytes": outcome.argument_bytes,
    "lower_seconds": round(outcome.lower_seconds, 1),
    "compile_seconds": round(outcome.compile_seconds, 1),
  }
  empty = dict.fromkeys(
    (
      *("temporary_bytes", "peak_bytes", "flops", "bytes"),
      *("estimated_seconds", "utilisation", "kernel_share"),
      *("collectives", "kernels", "unknown"),
    )
  )
  if found is None:
    return row | empty | {"peak_bytes": outcome.needed_bytes}
  utilisation = None
  if chip and found.seconds:
    utilisation = found.flops / found.seconds / chip.peak
  return {
    **row,
    **{name: getattr(found, name) for name in empty if hasattr(found, name)},
    "argument_bytes": found.argument_bytes,
    "estimated_seconds": found.seconds,
    "utilisation": utilisation,
    "collectives": _listed(found.collectives),
    "kernels": _listed(found.kernels),
  }


def _listed(found: Sequence[Any] | None) -> list[dict[str, Any]] | None:
  return None if found is None else [each._asdict() for each in found]


def describe(row: dict[str, Any]) -> str:
  """A row in lines for people."""
  mesh = " x ".join(f"{n} {axis}" for axis, n in row["mesh"].items()) or "1"
  lines = [
    f"{row['model']}, {row['step']} step, {row['rows']} rows on "
    f"{row['topology']}: {row['chips']} chips {row['chip']}, mesh {mesh}",
    *row["notes"],
    f"lowered in {row['lower_seconds']} s, compiled in "
    f"{row['compile_seconds']} s",
    _memory(row),
  ]
  if row["fits"]:
    lines += [
      f"a chip's work: {row['flops'] / 1e12:.4g} TFLOP and "
      f"{row['bytes'] / 1e9:.4g} GB read and written",
      _time(row),
      *(
        f"  kernel {k['name']}: {k['count']} x, {k['flops'] / 1e9:.4g} GFLOP, "
        f"{k['bytes'] / 1e6:,.1f} MB"
        for k in row["kernels"] or ()
      ),
      *(
        f"  {c['kind']} over {c['axis']}: {c['count']} x, "
        f"{c['bytes'] / 1e6:,.1f} MB"
        + (", under a condition" if c["conditional"] else "")
        for c in row["collectives"] or ()
      ),
      "not costed, and not in the time: " + ("; ".join(row["unknown"]) or "-"),
    ]
  elif "would_fit" in row:
    lines.append("would fit, as the compiler says:")
    lines += [f"  {fitting.describe(found)}" for found in row["would_fit"]] or [
      "  nothing that was tried"
    ]
  return "\n".join(lines)


def _memory(row) -> str:
  size = fitting.size_text
  available = row["available_bytes"]
  of = f" of {size(available)}" if available else ""
  arguments = f"arguments {size(row['argument_bytes'])}"
  if not row["fits"]:
    return (
      f"DOES NOT FIT: needs {size(row['bytes_per_chip'])}{of} a chip, "
      f"{arguments} among them"
    )
  return (
    f"fits: at most {size(row['peak_bytes'])}{of} a chip at once "
    f"({arguments}, temporaries {size(row['temporary_bytes'])})"
  )


def _time(row) -> str:
  if row["kernels"] is None:
    return "time: unknown"
  if row["estimated_seconds"] is None:
    share = ""
    if row["kernel_share"] == 0:
      share = "; no kernels of ours"
    return f"time: unknown, as the clock of {row['chip']} is not public{share}"
  return (
    f"time: {row['estimated_seconds'] * 1e3:.4g} ms by XLA's estimate, "
    f"{row['utilisation']:.1%} of the chip's peak; our kernels at least "
    f"{row['kernel_share']:.1%} of it"
  )
