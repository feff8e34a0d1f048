r"""Writes statistics of real images, that samples are measured against.

  python -m tools.reference_statistics --config=configs/lina.py:digits \
    --split=train --out=digits.npz
  python eval.py --weights=runs/lina --statistics=digits.npz

Without a file, evaluation makes them of the evaluation split. The images are
those of the config's data. `--features` is the feature network: empty for a
small classifier that is trained on the training images, the workdir of a run of
classification, or `inception:<weights>.pth`. The file names the network, and
is refused where another one measures.
"""

from collections.abc import Sequence

from absl import flags

import experiment
import storage
from experiment import ranges
from sample_metrics import features, reference, statistics
from training import checkpoints, cli, console


def main(argv: Sequence[str]) -> None:
  """Reads the flags, measures and writes."""
  del argv
  args = flags.FLAGS
  ranges.check(args.config)
  data = args.config.data
  if data.get("latents"):
    raise ValueError(
      f"config.data.latents={data.latents!r} are no images: give the config "
      "that they were encoded with."
    )
  folder = storage.path(args.out).parent
  if not args.out.endswith(".npz") or not folder.is_dir():
    raise ValueError(
      f"out={args.out!r} must be a file that ends in .npz, in a folder that "
      "there is."
    )
  network = features.create(args.features, data)
  made = reference.of_split(
    data, network, split=args.split, keep_features=args.keep_features
  )
  statistics.save(args.out, made)
  figures = "".join(f", {k} {v:.4f}" for k, v in network.report.items())
  console.say(
    f"{args.out}: {made.count} images of {made.data}, split {made.split!r}, by "
    f"{network.fingerprint}{figures}"
  )


if __name__ == "__main__":
  cli.define_config_flag(
    experiment.optional_fields, load_run=experiment.load_config
  )
  flags.DEFINE_string("features", "", "The feature network; see above.")
  flags.DEFINE_string("split", "", "Of the data; the one for evaluation if ''.")
  flags.DEFINE_string("out", None, "The file to write, *.npz.")
  flags.DEFINE_bool(
    "keep_features",
    True,
    "Keep the features of each image, which precision and recall need.",
  )
  flags.mark_flags_as_required(["config", "out"])
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
