"""Imports PyTorch and timm, quietly, also where no torchvision loads."""

import sys
import warnings
from typing import Any

_LIBRARIES: list[Any] = []


def import_torch() -> Any:
  """Returns torch.

  Raises:
    ImportError: if it is not installed.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
  return torch


def import_timm() -> tuple[Any, Any]:
  """Returns (torch, timm).

  Raises:
    ImportError: if they are not installed.
  """
  torch = import_torch()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _stand_in_for_torchvision(torch)
    import timm
  return torch, timm


def _stand_in_for_torchvision(torch: Any) -> None:
  """Declares two operators where there is no torchvision that loads.

  Its Python part, which timm imports, registers shapes for them.
  """
  if _LIBRARIES or _torchvision_loads():
    return
  library = torch.library.Library("torchvision", "DEF")
  for name in ("nms", "qnms"):
    library.define(
      f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )
  _LIBRARIES.append(library)


def _torchvision_loads() -> bool:
  try:
    import torchvision  # noqa: F401, whether it can be is the question.
  except (ImportError, RuntimeError, OSError):
    # A failed import leaves parts that the next one would trip over.
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
      del sys.modules[name]
    return False
  return True
