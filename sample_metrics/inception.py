"""The network of the published FIDs, from torch-fidelity."""

import hashlib
import pickle
from typing import Any

import numpy as np
from etils import epath

import storage
from tools import torch_imports

_ROWS = 32
_INSTEAD = "give 'inception:<path>.pth', the file that torch-fidelity publishes"


class InceptionFeatures:
  """Inception-v3 of the TensorFlow graph of 2015; `Features`.

  2,048 features, and logits without their bias, which the Inception Score is
  made of. Images are resized as TensorFlow 1 did.
  """

  class_names = None

  def __init__(self, spec: str):
    """Loads the network.

    Args:
      spec: "inception:<path>.pth".

    Raises:
      ValueError: if the file is not there, or has other things than weights of
        this network, or torch-fidelity is not installed.
    """
    self.spec = spec
    self.report = {}
    path = storage.path(spec.partition(":")[2] or "?")
    if not path.is_file():
      raise ValueError(f"features={spec!r} is no file: {_INSTEAD}.")
    try:
      self._torch, fidelity = torch_imports.import_fidelity()
    except ImportError as error:
      raise ValueError(
        f"features={spec!r} needs the extra `parity`: {error}."
      ) from error
    self._network = self._load(path, fidelity)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    self.fingerprint = f"inception-{digest[:16]}"

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `Features`; images are grey or in colours, of any size."""
    fits = images.ndim == 4 and images.shape[-1] in (1, 3)
    if images.dtype != np.uint8 or not fits:
      raise ValueError(
        f"images are {images.dtype} {list(images.shape)}, but they must be "
        "uint8 [n, height, width, 1 or 3]."
      )
    images = np.broadcast_to(images, (*images.shape[:-1], 3))
    # A copy, as PyTorch takes no array that cannot be written to.
    planes = np.array(images.transpose(0, 3, 1, 2), order="C")
    parts = [
      self._network(self._torch.from_numpy(planes[first : first + _ROWS]))
      for first in range(0, max(len(planes), 1), _ROWS)
    ]
    features, logits = zip(*parts, strict=True)
    return (
      self._torch.cat(features).numpy(),
      self._torch.cat(logits).numpy(),
    )

  def _load(self, path: epath.Path, fidelity: Any) -> Any:
    try:
      # The library unpickles whatever a file has; this refuses all but tensors
      # before it does.
      self._torch.load(path, weights_only=True)
      network = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(path),
      )
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
      raise ValueError(
        f"features={self.spec!r} has no weights of this network: {_INSTEAD}."
      ) from error
    return network
