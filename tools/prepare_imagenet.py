"""Prepares ImageNet, or a data set of its family, for training.

  python -m tools.prepare_imagenet --manual_dir=~/ilsvrc --data_dir=~/data
  python -m tools.prepare_imagenet --name=imagenet_v2/matched-frequency \\
    --data_dir=gs://bucket/data

Whatever is already there is used: a copy in ArrayRecord files is only counted,
one in TFRecord files is converted, and otherwise TFDS generates the data set.
Needs the extra [prepare]; training does not.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence

from etils import epath

import storage
from input_pipeline import prepared
from input_pipeline.images import source


def main(argv: Sequence[str] | None = None) -> None:
  arguments = _parse(argv)
  if importlib.util.find_spec("tensorflow") is None:
    sys.exit("tensorflow is not installed: pip install -e '.[prepare]'")
  try:
    prepare(
      arguments.name,
      prepared.get_data_dir(arguments.data_dir),
      arguments.manual_dir and storage.path(arguments.manual_dir),
      allow_subset=arguments.allow_subset,
    )
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--name",
    default="imagenet2012",
    help="of the data set in TFDS (default: %(default)s)",
  )
  parser.add_argument(
    "--manual_dir",
    help="folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
  )
  parser.add_argument(
    "--data_dir",
    help="folder of data sets (default: $TFDS_DATA_DIR, or else"
    " ~/tensorflow_datasets)",
  )
  parser.add_argument(
    "--allow_subset",
    action="store_true",
    help="accept tar files and data sets that lack classes or images",
  )
  return parser.parse_args(argv)


def prepare(
  name: str,
  data_dir: epath.Path,
  manual_dir: epath.Path | None,
  *,
  allow_subset: bool,
) -> None:
  """Generates or converts a data set unless it is there, and counts it.

  Raises:
    ValueError: for anything missing or damaged; says what to do.
  """
  # TensorFlow prints much when it is imported.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  from tools.imagenet import convert, counts, generate

  generate.check_name(name)
  versions = prepared.list_versions(data_dir / name)
  if not versions:
    generate.generate(name, data_dir, manual_dir, allow_subset=allow_subset)
  elif not prepared.is_readable(versions[-1]):
    print(f"Converting {versions[-1]}.")
    convert.convert(versions[-1])
  else:
    print(f"{versions[-1]} is prepared already; counting what it has.")
  builder = prepared.load_builder(name, data_dir, source.BUILT_IN)
  found = {
    split: counts.count_classes(builder, split)
    for split in builder.info.splits
    # Nobody outside knows the labels of this one.
    if (name, split) != ("imagenet2012", "test")
  }
  print("\n".join([str(builder.data_path), *counts.describe(found)]))
  faults = counts.check(
    name.partition("/")[0], found, counts.class_names(builder)
  )
  if faults and not allow_subset:
    raise ValueError(
      f"{builder.data_path} is not the whole of {name}:\n  "
      + "\n  ".join(faults)
      + "\nDelete it and prepare it again; or, if a part is meant, add"
      " --allow_subset."
    )


if __name__ == "__main__":
  main()
