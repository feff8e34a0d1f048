"""Looks at the tar files of ImageNet before hours are spent on them."""

import re
import tarfile
from collections.abc import Sequence

from etils import epath

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"
NUM_VALIDATION_IMAGES = 50_000

# What the members of each are called.
_MEMBERS = {
  TRAIN: (re.compile(r"n\d{8}\.tar"), "n01440764.tar"),
  VALIDATION: (
    re.compile(r"ILSVRC2012_val_\d{8}\.JPEG"),
    "ILSVRC2012_val_00000001.JPEG",
  ),
}


def check(
  manual_dir: epath.Path,
  filenames: Sequence[str],
  synsets: Sequence[str],
  *,
  allow_subset: bool,
) -> None:
  """Checks that the tar files are there, whole, and those of ILSVRC2012.

  Only headers are read: those of the images in the tar file for validation,
  and those of the 1,000 tar files inside the one for training.

  Args:
    manual_dir: where the tar files are.
    filenames: `TRAIN`, `VALIDATION` or both.
    synsets: names of all classes, such as "n01440764".
    allow_subset: whether classes and images may be missing.

  Raises:
    ValueError: says which file it is and what to do.
  """
  missing = [name for name in filenames if not (manual_dir / name).exists()]
  if missing:
    found = sorted(p.name for p in _list(manual_dir))
    raise ValueError(
      f"manual_dir: {manual_dir} lacks {' and '.join(missing)}. It has:"
      f" {', '.join(found[:10]) or 'nothing'}. The files are to be had at"
      " https://image-net.org/download-images after registration."
    )
  for name in filenames:
    members = _list_members(manual_dir / name)
    _check_names(manual_dir / name, members)
    if name == TRAIN:
      _check_synsets(manual_dir / name, members, synsets, allow_subset)
    else:
      _check_numbers(manual_dir / name, members, allow_subset)


def _list(folder: epath.Path) -> list[epath.Path]:
  return list(folder.iterdir()) if folder.is_dir() else []


def _list_members(path: epath.Path) -> list[str]:
  try:
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
      return tar.getnames()
  except tarfile.TarError as error:
    raise ValueError(
      f"{path} is no tar file, or it is cut short: {error}. Compare its size"
      " with the one where it comes from, and copy it again."
    ) from error


def _check_names(path: epath.Path, members: Sequence[str]) -> None:
  pattern, example = _MEMBERS[path.name]
  wrong = [name for name in members if not pattern.fullmatch(name)]
  if not wrong and members:
    return
  message = (
    f"{path} is not the file of ILSVRC2012 with this name. It holds"
    f" {', '.join(wrong[:3]) or 'nothing'}, where names such as {example} are"
    " expected."
  )
  for other, (other_pattern, _) in _MEMBERS.items():
    if wrong and other_pattern.fullmatch(wrong[0]):
      message += f" It looks like {other}."
  raise ValueError(message)


def _check_synsets(
  path: epath.Path,
  members: Sequence[str],
  synsets: Sequence[str],
  allow_subset: bool,
) -> None:
  found = {name.removesuffix(".tar") for name in members}
  unknown, missing = found - set(synsets), set(synsets) - found
  if unknown:
    raise ValueError(
      f"{path} has {_some(unknown)}, which no class of ILSVRC2012 is called."
    )
  if missing and not allow_subset:
    raise ValueError(
      f"{path} lacks {len(missing)} of {len(synsets)} classes:"
      f" {_some(missing)}. If that is meant, add --allow_subset."
    )


def _check_numbers(
  path: epath.Path, members: Sequence[str], allow_subset: bool
) -> None:
  if len(members) != NUM_VALIDATION_IMAGES and not allow_subset:
    raise ValueError(
      f"{path} has {len(members):,} images instead of"
      f" {NUM_VALIDATION_IMAGES:,}. If that is meant, add --allow_subset."
    )
  # The labels come as a list in the order of the names: with a gap, all later
  # images would have the label of another one.
  numbers = sorted(int(name[-13:-5]) for name in members)
  gaps = set(range(1, len(numbers) + 1)) - set(numbers)
  if gaps:
    raise ValueError(
      f"{path} has {len(numbers):,} images but not number {min(gaps)}, so that"
      " labels would go to the wrong images. A part of it must be the first"
      " images, without a gap."
    )


def _some(names: set[str]) -> str:
  shown = sorted(names)[:10]
  return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
