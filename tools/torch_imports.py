"""Imports PyTorch and what is built on it, quietly, without torchvision too."""

import importlib
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
  return _import_beside_torch("timm")


def import_fidelity() -> tuple[Any, Any]:
  """Returns (torch, torch_fidelity).

  Raises:
    ImportError: if they are not installed.
  """
  return _import_beside_torch("torch_fidelity")


def import_transformers(family: str) -> tuple[Any, Any]:
  """Returns torch and the module of a family, as "gpt2", of transformers.

  It has the family's models and its config's class; importing transformers'
  own names would load far more.

  Raises:
    ImportError: if they are not installed.
  """
  return _import_beside_torch(f"transformers.models.{family}.modeling_{family}")


def import_diffusers(name: str) -> tuple[Any, Any]:
  """Returns torch and a module of diffusers, as "models.autoencoders.vae".

  Raises:
    ImportError: if they are not installed.
  """
  return _import_beside_torch(f"diffusers.{name}")


def import_spandrel(architecture: str) -> tuple[Any, Any]:
  """Returns torch and spandrel's module of an architecture, as "SPAN".

  Raises:
    ImportError: if they are not installed.
  """
  return _import_beside_torch(f"spandrel.architectures.{architecture}")


def _import_beside_torch(name: str) -> tuple[Any, Any]:
  torch = import_torch()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _stand_in_for_torchvision(torch)
    return torch, importlib.import_module(name)


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
