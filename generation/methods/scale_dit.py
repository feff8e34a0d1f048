"""Scale-DiT: larger images by windows and a small image (arXiv 2510.16325)."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from attention import checks
from generation import denoiser, methods


def scale_dit(
  model: nn.Module,
  steps: int,
  *,
  window: int = 16,
  scale: int = 0,
  scale_by: str = "constant",
) -> "methods.Method":
  """Attends to near tokens and to those of a small image.

  Args:
    model: a diffusion transformer of images with rotary positions.
    steps: of sampling.
    window: side of a window, in tokens.
    scale: how many times as large the image is as the small one, of which
      the first step's state must have the tokens (`small_image`); 0 for none.
    scale_by: "constant" or "entropy", see `models.attends.scale_dit`.

  Raises:
    ValueError: for a model whose positions cannot be stretched, or windows that
      `scale` does not divide.
  """
  checks.whole("window", window, 1)
  checks.whole("scale", scale, 0)
  if scale:
    _check_rotary(model)
    if window % scale:
      raise ValueError(
        f"window is {window}; the small image's windows are {scale} times "
        f"smaller, so it must be a multiple of scale={scale}"
      )
  options = {"window": window, "scale": scale, "scale_by": scale_by}
  changed = methods.with_attend(model, "scale_dit", options)
  small = None
  if scale:
    state = functools.partial(small_image, model, window=window, scale=scale)
    small = methods.Small(scale, state)
  return methods.Method((changed,), (0,) * steps, small)


def small_image(
  model: nn.Module,
  variables: Mapping[str, Any],
  image: jax.Array,
  *,
  window: int = 16,
  scale: int = 4,
  **condition: Any,
) -> Any:
  """Returns the state that `scale_dit`'s first step is given.

  It holds keys and values of a clean small image, which stay the same at all
  steps, as the released code reads the clean one again at each.

  Args:
    model: that was trained.
    variables: its own.
    image: the small image [batch, height, width, channels], which it has made.
    window: as for `scale_dit`.
    scale: likewise.
    **condition: label, text, text_length and guidance, as for
      `denoiser.create_denoiser` of the samples.

  Raises:
    ValueError: for a model whose positions cannot be stretched.
  """
  _check_rotary(model)
  small = model.clone(
    attend="scale_dit",
    attend_options={
      "window": window,
      "scale": scale,
      "role": "low",
      "rotary_base": model.rotary_base,
    },
  )
  read = denoiser.create_denoiser(small, variables, **condition)
  return jax.jit(lambda read, x: read(x, 0.0, {})[1])(read, image)


def _check_rotary(model: nn.Module) -> None:
  methods.require(model, "position_encoding")
  if model.position_encoding != "rotary":
    raise ValueError(
      f"position_encoding is {model.position_encoding!r}; a small image's "
      "positions are stretched to those of the large one, for which it must be "
      "'rotary'"
    )
