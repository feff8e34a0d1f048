"""The photographs that scikit-learn and scikit-image have in their packages.

They need no download. Drawings, microscopes' cells and black and white masks
are left out, and so is the right one of two views of the same room.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping

import numpy as np
from etils import epath

from input_pipeline.images import decode

# The package and folder of each. Those to evaluate are fixed, so that figures
# of one time compare with those of another: a face, a still life, a plant.
_IMAGE = ("skimage", "data")
_LEARN = ("sklearn", "datasets/images")
PHOTOGRAPHS: Mapping[str, Mapping[str, tuple[str, str]]] = {
  "train": {
    "brick.png": _IMAGE,
    "camera.png": _IMAGE,
    "chelsea.png": _IMAGE,
    "china.jpg": _LEARN,
    "coins.png": _IMAGE,
    "grass.png": _IMAGE,
    "gravel.png": _IMAGE,
    "hubble_deep_field.jpg": _IMAGE,
    "moon.png": _IMAGE,
    "motorcycle_left.png": _IMAGE,
    "retina.jpg": _IMAGE,
    "rocket.jpg": _IMAGE,
  },
  "eval": {
    "astronaut.png": _IMAGE,
    "coffee.png": _IMAGE,
    "flower.jpg": _LEARN,
  },
}


@dataclasses.dataclass(frozen=True)
class Photographs:
  """Those to train on or to evaluate; a `sources.Source`, kept in memory.

  Attributes:
    stream_name: "train" or "eval".
  """

  stream_name: str
  paired: bool = dataclasses.field(default=False, init=False)

  def __post_init__(self):
    """Looks for all of them.

    Raises:
      ValueError: if a package or one of its files is not installed.
    """
    for file, place in PHOTOGRAPHS[self.stream_name].items():
      _find(file, *place)

  def __len__(self) -> int:
    return len(PHOTOGRAPHS[self.stream_name])

  def name(self, index: int) -> str:
    """See `sources.Source`."""
    return epath.Path(self._file(index)).stem

  def read(self, index: int) -> tuple[np.ndarray, None]:
    """See `sources.Source`; grey ones have three equal channels."""
    file = self._file(index)
    return _read(file, *PHOTOGRAPHS[self.stream_name][file]), None

  def _file(self, index: int) -> str:
    return [*PHOTOGRAPHS[self.stream_name]][index]


def _find(file: str, package: str, folder: str) -> epath.Path:
  """Where a file of a package is, without importing the package."""
  found = importlib.util.find_spec(package)
  if found is None or not found.submodule_search_locations:
    raise ValueError(
      f"name='photographs' needs the files of {package}, which is not "
      "installed: pip install 'foveal[photographs]', or pip install -e "
      "'.[photographs]' in this repository."
    )
  path = epath.Path(found.submodule_search_locations[0]) / folder / file
  if not path.is_file():
    raise ValueError(
      f"name='photographs' needs {path}, which the installed {package} lacks: "
      "pip install --upgrade 'scikit-image>=0.25' 'scikit-learn>=1.5'."
    )
  return path


@functools.cache
def _read(file: str, package: str, folder: str) -> np.ndarray:
  image = decode.decode_image(_find(file, package, folder).read_bytes())
  image.setflags(write=False)  # As it is shared by all who ask for it.
  return image
