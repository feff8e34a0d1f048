"""Image files that a person gives, and where what is made of them goes."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import ExifTags, Image, ImageOps

import storage

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# What Pillow raises for files that are not whole, are none, or are a bomb.
_ERRORS = (OSError, SyntaxError, Image.DecompressionBombError)
# Modes of Pillow with eight bits a value.
_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA")


class Job(NamedTuple):
  """An image to read and where its restoration goes.

  Attributes:
    source: the file.
    target: a .png that is none of the sources.
    shape: height and width, as it is seen.
  """

  source: epath.Path
  target: epath.Path
  shape: tuple[int, int]


def jobs(given: str, out: str, default: str) -> list[Job]:
  """Finds images, and refuses before any work what cannot be done.

  Args:
    given: a file, or a folder whose images are taken, not those of its folders.
    out: a .png for a file, or a folder, which is made; if empty, `default`
      with ".png" for a file, and as it is for a folder.
    default: a name.

  Raises:
    ValueError: if there is no such file or folder, a folder has no images, or
      a file is none that can be read; if a target is a source, is not a .png,
      or that of two sources.
  """
  if not given:
    raise ValueError("input='': give an image or a folder of them.")
  path = storage.path(given)
  if path.is_dir():
    sources = sorted(p for p in path.iterdir() if _is_image(p))
    if not sources:
      raise ValueError(
        f"input={given!r} has no images: no {', '.join(SUFFIXES)}."
      )
    folder = storage.path(out or default)
    if folder.exists() and not folder.is_dir():
      raise ValueError(f"out={out!r} must be a folder, as input={given!r} is.")
    targets = [folder / f"{source.stem}.png" for source in sources]
  elif path.exists():
    sources, targets = [path], [_target(out or f"{default}.png")]
  else:
    raise ValueError(f"input={given!r} does not exist.")
  _check_targets(sources, targets)
  return [
    Job(source, target, shape_of(source))
    for source, target in zip(sources, targets, strict=True)
  ]


def _target(out: str) -> epath.Path:
  file = storage.path(out)
  if file.suffix.lower() != ".png":
    raise ValueError(f"out={out!r} must end in .png.")
  if not file.parent.is_dir():
    raise ValueError(
      f"out={out!r}: the folder {str(file.parent)!r} does not exist."
    )
  return file


def _check_targets(
  sources: Sequence[epath.Path], targets: Sequence[epath.Path]
) -> None:
  known = {str(storage.absolute(source)) for source in sources}
  made: dict[str, epath.Path] = {}
  for source, target in zip(sources, targets, strict=True):
    name = str(storage.absolute(target))
    if name in known:
      raise ValueError(
        f"out: {str(target)!r} is one of the images that are read; choose "
        "another place."
      )
    if name in made:
      raise ValueError(
        f"input: {str(made[name])!r} and {str(source)!r} would both be "
        f"written to {str(target)!r}."
      )
    made[name] = source


def _is_image(path: epath.Path) -> bool:
  return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def shape_of(path: epath.Path) -> tuple[int, int]:
  """Height and width of an image, from the head of its file.

  Raises:
    ValueError: if it is no image, or one that RGB has not all of.
  """
  with _opened(path) as image:
    width, height = image.size
    try:
      # Of a camera that was turned by a quarter. A PNG is read for it.
      turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except _ERRORS as error:
      raise _damaged(path, error) from error
  return (width, height) if turned else (height, width)


def read(path: epath.Path) -> np.ndarray:
  """Reads an image, turned as it is to be seen.

  Returns:
    uint8 [height, width, 3]; three equal channels of what is grey.

  Raises:
    ValueError: if it is no image, is cut off, or RGB has not all of it: more
      than eight bits, or pixels that are not opaque.
  """
  with _opened(path) as image:
    try:
      image = ImageOps.exif_transpose(image)
      if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
          raise ValueError(
            f"{str(path)!r} has transparent pixels, and networks restore RGB "
            "alone: put it on a background first."
          )
      return np.asarray(image.convert("RGB"))
    except _ERRORS as error:
      raise _damaged(path, error) from error


def _opened(path: epath.Path) -> Image.Image:
  try:
    image = Image.open(io.BytesIO(storage.read_bytes(path)))
  except _ERRORS as error:
    raise _damaged(path, error) from error
  if image.mode not in _MODES:
    raise ValueError(
      f"{str(path)!r} is of mode {image.mode!r}; it must be one of "
      f"{', '.join(_MODES)}, with 8 bits a value."
    )
  return image


def _damaged(path, error):
  return ValueError(f"{str(path)!r} cannot be read as an image: {error}")
