"""Prepares a data set with the code of TFDS that generates it."""

import json
from collections.abc import Sequence

import tensorflow_datasets as tfds
from etils import epath

from tools.imagenet import tars

INFO = "dataset_info.json"
FORMAT = tfds.core.FileFormat.ARRAY_RECORD
# The tar files that must be in manual_dir.
TARS = {
  "imagenet2012": (tars.TRAIN, tars.VALIDATION),
  "imagenet2012_real": (tars.VALIDATION,),
  "imagenet2012_multilabel": (tars.VALIDATION,),
}


def list_names() -> list[str]:
  """Data sets called ImageNet that the installed TFDS can generate."""
  names = tfds.list_builders(with_community_datasets=False)
  return [name for name in names if name.startswith("imagenet")]


def check_name(name: str) -> None:
  """Raises `ValueError` if TFDS has no data set, or no config, of this name."""
  base, _, config = name.partition("/")
  known = list_names()
  if base not in known:
    raise ValueError(
      f"name: {name!r} is not among the data sets of TFDS"
      f" {tfds.__version__} called ImageNet: {', '.join(known)}."
    )
  configs = list(tfds.builder_cls(base).builder_configs)
  if (config or configs) and config not in configs:
    raise ValueError(
      f"name: {name!r} needs one of the configs"
      f" {', '.join(f'{base}/{c}' for c in configs)}."
      if configs
      else f"name: {base!r} has no configs, but {config!r} is asked for."
    )


def generate(
  name: str,
  data_dir: epath.Path,
  manual_dir: epath.Path | None,
  *,
  allow_subset: bool,
) -> None:
  """Writes `data_dir/name/version`; it appears there only when it is whole.

  Of what an earlier run that was killed has left, finished splits of
  imagenet2012 and downloads are used and the rest is removed.

  Args:
    name: "imagenet2012" or "name/config".
    data_dir: where data sets are.
    manual_dir: where files are that must be downloaded by hand.
    allow_subset: whether the tar files may lack classes and images.

  Raises:
    ValueError: if the tar files are not as they should be.
  """
  needed = TARS.get(name, ())
  if needed:
    if manual_dir is None:
      raise ValueError(
        f"manual_dir: {name!r} is not prepared in {data_dir}, and needs"
        f" {' and '.join(needed)} from there."
      )
    names_file = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    tars.check(
      manual_dir,
      needed,
      names_file.read_text().split(),
      allow_subset=allow_subset,
    )
  if name == "imagenet2012":
    _generate_by_split(data_dir, manual_dir)
  else:
    _generate(tfds.builder(name, data_dir=data_dir), data_dir, manual_dir)


def _generate(
  builder: tfds.core.DatasetBuilder,
  data_dir: epath.Path,
  manual_dir: epath.Path | None,
) -> None:
  """Writes `builder.data_path`, which appears only when it is whole."""
  if builder.data_path.exists():
    return
  if builder.data_path.parent.is_dir():
    for path in builder.data_path.parent.iterdir():
      # TFDS calls them so, with random letters, and does not use them again.
      if path.name.startswith("incomplete."):
        print(f"Removing {path}, which an earlier run has left.")
        path.rmtree()
  builder.download_and_prepare(
    download_dir=data_dir / "downloads",
    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
    file_format=FORMAT,
  )


def _generate_by_split(data_dir: epath.Path, manual_dir: epath.Path) -> None:
  """Generates each split by itself, so that a finished one is kept."""
  parts = data_dir / "imagenet2012" / "incomplete.parts"
  folders = []
  for split, tar in zip(
    ("validation", "train"), TARS["imagenet2012"][::-1], strict=True
  ):
    # The size is in the name lest a part of another tar file is used.
    size = (manual_dir / tar).stat().length
    builder = tfds.builder("imagenet2012", data_dir=parts / f"{split}-{size}")
    _keep_only(builder, split)
    _generate(builder, data_dir, manual_dir)
    folders.append(builder.data_path)
  _merge(folders)
  folders[0].rename(data_dir / "imagenet2012" / folders[0].name)
  parts.rmtree()


def _keep_only(builder: tfds.core.DatasetBuilder, split: str) -> None:
  all_generators = builder._split_generators
  builder._split_generators = lambda dl_manager: [
    generator
    for generator in all_generators(dl_manager)
    if generator.name == split
  ]


def _merge(folders: Sequence[epath.Path]) -> None:
  """Moves all splits into the first folder; may be killed and called again."""
  target, *others = folders
  splits = {}
  for folder in folders:
    info = json.loads((folder / INFO).read_text())
    splits |= {split["name"]: split for split in info["splits"]}
  for path in (path for folder in others for path in folder.iterdir()):
    if "." + FORMAT.file_suffix in path.name:
      path.rename(target / path.name)
  info["splits"] = list(splits.values())
  partial = target / f"incomplete.{INFO}"
  partial.write_text(json.dumps(info, indent=2))
  partial.replace(target / INFO)
