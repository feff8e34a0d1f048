"""What is kept of real images, and the file of it.

An `.npz` with `mean` [d], `covariance` [d, d], `count`, and JSON in `about`:
the `spec` and the `fingerprint` of the feature network, the `data` and the
`split`. `features` [count, d] float32 is there if it was asked for; precision
and recall need it.
"""

import dataclasses
import io
import json
import zipfile

import numpy as np

import storage
from sample_metrics.features import Features


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of the features of real images.

  Attributes:
    mean: float64 [d].
    covariance: float64 [d, d].
    count: of images.
    spec: of the feature network, see `features.create`.
    fingerprint: of the feature network.
    data: its name and what tells it from others of this name.
    split: of the data.
    features: float32 [count, d], or None where they were not kept.
  """

  mean: np.ndarray
  covariance: np.ndarray
  count: int
  spec: str
  fingerprint: str
  data: str
  split: str
  features: np.ndarray | None = None


_ABOUT = ("count", "spec", "fingerprint", "data", "split")


def save(path: str, statistics: Statistics) -> None:
  """Writes the file, whole or not at all."""
  about = {name: getattr(statistics, name) for name in _ABOUT}
  arrays = {"mean": statistics.mean, "covariance": statistics.covariance}
  if statistics.features is not None:
    arrays["features"] = statistics.features
  file = io.BytesIO()
  np.savez(file, about=np.array(json.dumps(about)), **arrays)
  storage.write_whole(storage.path(path), file.getvalue())


def load(path: str, features: Features) -> Statistics:
  """Reads a file for use with the network that it was made with.

  Raises:
    ValueError: if it is no such file, or of another network.
    OSError: if it cannot be read.
  """
  content = storage.path(path).read_bytes()
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
      kept = {name: arrays[name] for name in arrays.files}
    about = json.loads(str(kept.pop("about")))
    statistics = Statistics(**kept, **{name: about[name] for name in _ABOUT})
  except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile):
    raise ValueError(
      f"statistics={path!r} is no file that tools/reference_statistics.py "
      "wrote, or it is damaged."
    ) from None
  check(statistics, features, f"statistics={path!r}")
  return statistics


def check(statistics: Statistics, features: Features, name: str) -> None:
  """Refuses statistics of another network, or of a broken shape.

  Args:
    statistics: of real images.
    features: that samples are to be measured with.
    name: of the statistics, for the message.

  Raises:
    ValueError: if they do not fit.
  """
  if statistics.fingerprint != features.fingerprint:
    raise ValueError(
      f"{name} are of the network {statistics.fingerprint} (features="
      f"{statistics.spec!r}, {statistics.data}, split {statistics.split!r}), "
      f"but features={features.spec!r} is {features.fingerprint}. Give the "
      "features that they were made with, or make statistics of these: python "
      "-m tools.reference_statistics --config=<config> "
      f"--features={features.spec} --out=<file>.npz"
    )
  size = statistics.mean.size
  if statistics.covariance.shape != (size, size) or statistics.mean.ndim != 1:
    raise ValueError(
      f"{name} have a mean {list(statistics.mean.shape)} and a covariance "
      f"{list(statistics.covariance.shape)}, which do not fit."
    )
