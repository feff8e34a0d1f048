"""ELA beside squeeze-excite and nothing in a small residual network."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from configs import fashion_mnist
from tools import small_images

GROUP = "light_modules"
TITLE = "ELA (2403.01123)"
TEXT = """\
A residual network of two bottleneck blocks at 8 x 8 and 4 x 4 pixels, trained
alike on the digits (200 updates of 64 images) and on Fashion-MNIST (250):
without gates, with squeeze-excite at the end of each branch, and with ELA-B as
its authors have it in residual networks: after each 3 x 3 convolution, the stem
and each stage, with what it weighs added once more. The paper says that ELA is
better than squeeze-excite on ImageNet, whose maps are larger. Accuracies are of
the test images.
"""
COLUMNS = small_images.COLUMNS


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows and the fields of their models; of a test, one."""
  made = {
    name: fashion_mnist.get_config(name).model.to_dict()
    for name in ("none", "squeeze_excite", "ela")
  }
  if variant == "full":
    return list(made.items())
  small = {"stem": "conv7", "stem_widths": (4, 4, 16), "widths": (16,)}
  small |= {"block": "basic", "depths": (1,), "gate_places": ("within",)}
  return [("ela", {**made["ela"], **small})]


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
