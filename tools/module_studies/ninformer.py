"""NiNformer beside ViT and MLP-Mixer of as many parameters."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from configs import patch_mixers
from tools import small_images

GROUP = "light_modules"
TITLE = "NiNformer (2403.02411)"
TEXT = """\
Networks of two blocks on the 64 patches of images of 32 x 32 pixels, with as
many parameters to 0.6 %, trained alike on the digits (200 updates of 64 images)
and on Fashion-MNIST (250). ViT has a class token and positions,
MLP-Mixer and NiNformer the mean over tokens; weights begin as each one's own
code has it. The paper says that NiNformer is better than both after 100 epochs
of CIFAR-10. Accuracies are of the test images.
"""
COLUMNS = small_images.COLUMNS
_ROWS = {
  "ViT": "digits",
  "MLP-Mixer": "mlp_digits",
  "NiNformer": "ninformer_digits",
}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows and the fields of their models; of a test, one small."""
  made = {
    name: patch_mixers.get_config(config).model.to_dict()
    for name, config in _ROWS.items()
  }
  if variant == "full":
    return list(made.items())
  small = {"patch_size": 16, "width": 8, "depth": 1, "hidden_width": 8}
  return [("NiNformer", {**made["NiNformer"], **small})]


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
