"""Images in a folder: pairs NAME_HR.png and NAME_LR.png, or clean ones."""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

import storage
from input_pipeline.images import decode

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
_CLEAN, _DEGRADED = "_HR", "_LR"
# Headers are read at once from storage where each takes its time.
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Folder:
  """A `sources.Source`.

  Attributes:
    names: of the images, in alphabetical order.
    clean: their files.
    degraded: likewise, or () without pairs.
  """

  names: tuple[str, ...]
  clean: tuple[epath.Path, ...]
  degraded: tuple[epath.Path, ...] = ()

  @property
  def paired(self) -> bool:
    """Whether there are degraded images too."""
    return bool(self.degraded)

  def __len__(self) -> int:
    return len(self.names)

  def name(self, index: int) -> str:
    """See `sources.Source`."""
    return self.names[index]

  def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """See `sources.Source`."""
    clean = _decode(self.clean[index])
    return clean, _decode(self.degraded[index]) if self.paired else None


def open_folder(path: str, field: str, scale: int, least: int = 1) -> Folder:
  """Lists a folder, not those in it, and looks at the sizes of images.

  Args:
    path: of the folder.
    field: of the config that has it, for messages.
    scale: sides of a clean image over those of its degraded one.
    least: the sides that degraded images must have.

  Raises:
    ValueError: if there is no such folder, no image in it, two of one name, one
      of a pair without the other, both pairs and others, a pair of other sizes
      or an image that is too small.
    DamagedImageError: if a file has no header of an image.
  """
  files = _list_images(path, field)
  clean = _without_ending(files, _CLEAN)
  degraded = _without_ending(files, _DEGRADED)
  if clean or degraded:
    _check_complete(field, path, files, clean, degraded)
    found = Folder(
      tuple(clean), tuple(clean.values()), tuple(degraded[n] for n in clean)
    )
  else:
    found = Folder(tuple(files), tuple(files.values()))
  _check_sizes(found, scale, least)
  return found


def _list_images(path: str, field: str) -> dict[str, epath.Path]:
  if not path:
    raise ValueError(
      f"{field} is empty, but name='folder' reads a folder of images: set "
      f"config.data.{field}."
    )
  root = storage.path(path)
  if not root.is_dir():
    raise ValueError(
      f"{field}: {path!r} is no folder (looked for {storage.absolute(root)})."
    )
  files = {}
  for file in sorted(root.iterdir(), key=lambda file: file.name):
    if file.suffix.lower() not in ENDINGS:
      continue
    if file.stem in files:
      raise ValueError(
        f"{field}: {path!r} has {files[file.stem].name} and {file.name}, two "
        "images of one name: rename one."
      )
    files[file.stem] = file
  if not files:
    raise ValueError(
      f"{field}: {path!r} has no image: none of its files ends in "
      f"{', '.join(ENDINGS)}."
    )
  return files


def _without_ending(
  files: dict[str, epath.Path], ending: str
) -> dict[str, epath.Path]:
  return {
    name.removesuffix(ending): file
    for name, file in files.items()
    if name.endswith(ending)
  }


def _check_complete(
  field: str,
  path: str,
  files: dict[str, epath.Path],
  clean: dict[str, epath.Path],
  degraded: dict[str, epath.Path],
) -> None:
  lone = sorted(clean.keys() ^ degraded.keys())
  if lone:
    raise ValueError(
      f"{field}: {path!r} has only one of {lone[0]}{_CLEAN} and "
      f"{lone[0]}{_DEGRADED}, and so of {len(lone)} names: pairs need both."
    )
  paired = {*clean.values(), *degraded.values()}
  others = [file.name for file in files.values() if file not in paired]
  if others:
    raise ValueError(
      f"{field}: {path!r} has pairs and {len(others)} other images, first of "
      f"all {others[0]}: put them into another folder."
    )


def _check_sizes(found: Folder, scale: int, least: int) -> None:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    clean = list(pool.map(_size, found.clean))
    degraded = list(pool.map(_size, found.degraded))
  for file, (height, width) in zip(found.clean, clean, strict=True):
    if min(height, width) < scale * least:
      raise ValueError(
        f"{file} is {height} x {width} pixels, but must be {scale * least} or "
        f"more each way: scale is {scale}, and a degraded image has at least "
        f"{least}."
      )
  for file, size, (h, w) in zip(found.clean, clean, degraded, strict=False):
    if size != (scale * h, scale * w):
      raise ValueError(
        f"{file} is {size[0]} x {size[1]} pixels, but its degraded image {h} x "
        f"{w}, and scale is {scale}: it must be {scale * h} x {scale * w}."
      )


def _size(file: epath.Path) -> tuple[int, int]:
  """Height and width, of the header alone."""
  with _naming(file), file.open("rb") as stream, Image.open(stream) as image:
    return image.size[::-1]


def _decode(file: epath.Path) -> np.ndarray:
  with _naming(file):
    return decode.decode_image(storage.read_bytes(file))


@contextlib.contextmanager
def _naming(file: epath.Path) -> Iterator[None]:
  """Says in an error of decoding which file it is of."""
  try:
    yield
  except (decode.DamagedImageError, UnidentifiedImageError) as error:
    raise decode.DamagedImageError(f"{file}: {error}") from error
