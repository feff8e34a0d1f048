"""RandAugment and AutoAugment in the form that the papers' code has."""

from collections.abc import Collection, Sequence

from input_pipeline import checks
from input_pipeline.images import tf_operations, transforms

# AutoAugment's ImageNet policy as EfficientNet was trained with it: one row is
# drawn, and each of its operations is applied with a probability, at a level.
_POLICY_V0 = (
  (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
  (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
  (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
  (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
  (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
  (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
  (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
  (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
  (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
  (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
  (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
  (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
  (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
  (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
  (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
  (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
  (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
  (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
  (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
  (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
  (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
  (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
  (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
  (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
  (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)

_POLICIES = {"v0": _POLICY_V0}


def rand_augment(
  layers: int = 2,
  magnitude: float = 15.0,
  magnitude_std: float = 0.0,
  operations: Sequence[str] = tuple(tf_operations.OPERATIONS),
  exclude: Collection[str] = (),
  increasing: bool = False,
) -> transforms.Transform:
  """RandAugment: exactly `layers` operations, each drawn uniformly.

  https://arxiv.org/abs/1909.13719, in the form of the TensorFlow code that
  ResNet-RS and MaxViT were trained with: with replacement, without a
  probability of leaving one out, all at the same level. The level `M` means:
  rotate +-3M degrees, posterize to int(0.4M) bits, solarize from int(25.6M)
  on, add int(11M) to dark values (SolarizeAdd), enhance (color, contrast,
  brightness, sharpness) by 0.18M + 0.1, shear by +-0.03M, translate by +-10M
  pixels, a grey square with half side int(4M) (cutout).

  Args:
    layers: operations for each image, the paper's N.
    magnitude: the paper's M. 10 was meant as the largest; ResNet-RS and MaxViT
      use 15, and more is possible.
    magnitude_std: above 0, each operation draws its own level from a normal
      distribution around `magnitude`, cut off at 0. The papers have 0.
    operations: to draw from, names of `tf_operations.OPERATIONS`.
    exclude: names to leave out: `("Cutout",)` gives the fifteen of MaxViT's
      released configuration.
    increasing: a higher level is always a stronger change; see
      `tf_operations.Strength`. The papers have False.

  Raises:
    ValueError: for unknown operations, for none at all, or negative numbers.
  """
  for name in (*operations, *exclude):
    _check_operation(name)
  chosen = [
    tf_operations.OPERATIONS[name] for name in operations if name not in exclude
  ]
  if not chosen:
    raise ValueError(f"exclude={exclude!r} leaves no operation.")
  checks.check_integer("layers", layers, 0)
  checks.check_number("magnitude", magnitude)
  checks.check_number("magnitude_std", magnitude_std)
  strength = tf_operations.Strength(100, 40, increasing)

  def apply(image, rng):
    pil = transforms.to_pil(image)
    for _ in range(layers):
      operation = chosen[rng.integers(len(chosen))]
      level = magnitude
      if magnitude_std:
        level = max(0.0, rng.normal(magnitude, magnitude_std))
      pil = operation(pil, level, strength, rng)
    return transforms.to_array(pil)

  return apply


def auto_augment(policy: str = "v0") -> transforms.Transform:
  """AutoAugment: one of 25 learned pairs of operations.

  https://arxiv.org/abs/1805.09501, with the policy "v0" for ImageNet of the
  TensorFlow code that EfficientNet was trained with. The operations are those
  of `rand_augment`, with translation by up to 250 pixels at level 10.

  Raises:
    ValueError: for another policy.
  """
  if policy not in _POLICIES:
    raise ValueError(
      f"policy is {policy!r}, but must be {', '.join(_POLICIES)}."
    )
  pairs = _POLICIES[policy]
  strength = tf_operations.Strength(250, 100)

  def apply(image, rng):
    pil = transforms.to_pil(image)
    for name, probability, level in pairs[rng.integers(len(pairs))]:
      if rng.random() < probability:
        pil = tf_operations.OPERATIONS[name](pil, level, strength, rng)
    return transforms.to_array(pil)

  return apply


def _check_operation(name: str) -> None:
  if name not in tf_operations.OPERATIONS:
    raise ValueError(
      f"{name!r} is no operation of RandAugment; there are"
      f" {', '.join(tf_operations.OPERATIONS)}."
    )
