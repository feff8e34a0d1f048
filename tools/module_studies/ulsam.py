"""ULSAM in the place of a block of a small MobileNet-V2."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from configs import mobilenet
from tools import small_images

GROUP = "light_modules"
TITLE = "ULSAM (2006.15102)"
TEXT = """\
A MobileNet-V2 of five blocks at 8 x 8 and 4 x 4 pixels, trained alike on the
digits (200 updates of 64 images) and on Fashion-MNIST (250): whole; without the
last of three blocks of 32 channels; and with ULSAM of four groups in that
block's place. The control of what takes a block's place is the network without
it: the paper compares with the whole network alone, and says that little is
lost. Accuracies are of the test images.
"""
COLUMNS = small_images.COLUMNS
_BLOCK = 4


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows and the fields of their models; of a test, one."""
  whole = mobilenet.get_config("digits").model.to_dict()

  def ulsam(block):
    options = {"gate_options": {"groups": 4}, "replace": (block,)}
    return {**whole, "gate": "ulsam", **options}

  if variant == "test":
    small = {"stages": ((2, 8, 2, 2),), "stem_width": 8, "final_width": 8}
    return [("block replaced", ulsam(1) | small)]
  return [
    ("whole", whole),
    ("block removed", {**whole, "replace": (_BLOCK,)}),
    ("block replaced", ulsam(_BLOCK)),
  ]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """What COLUMNS names, of a network with the fields `options`."""
  del folder, name
  return small_images.figures(options, seed, variant)
