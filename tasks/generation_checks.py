"""What masked generation refuses before any work is done."""

from typing import Any

import ml_collections

from tasks import mask_draws


def check_masks(ratio: ml_collections.ConfigDict, places: int) -> None:
  """Raises ValueError for a distribution of masks that cannot be drawn."""
  if ratio.low >= ratio.high:
    raise ValueError(
      f"mask_ratio.low={ratio.low} must be below mask_ratio.high={ratio.high}."
    )
  if mask_draws.most_visible(ratio, places) >= places:
    raise ValueError(
      f"mask_ratio.low={ratio.low} of {places} tokens may leave none that is "
      f"masked; it must be above {0.5 / places:.3g}."
    )


def check_data(data: ml_collections.ConfigDict, info: Any, model: Any) -> None:
  """Raises ValueError unless the model is of such images."""
  if info.many_labels:
    raise ValueError(
      f"data.label={data.label!r}: images with several labels do not serve "
      "masked generation."
    )
  p, (rows, columns) = model.patch_size, model.grid
  want = (rows * p, columns * p, model.token_dim // p**2)
  have = info.latent_shape or info.image_shape
  if have != want:
    what = (
      f"data.latents={data.latents!r} are latents"
      if info.latent_shape
      else f"data.image_size={data.image_size} and data.channels="
      f"{data.channels} are images"
    )
    raise ValueError(
      f"{what} of {_size(have)}, but model.grid={model.grid}, model.patch_size="
      f"{p} and model.token_dim={model.token_dim} are for {_size(want)}."
    )
  width = info.text_shape[1] if info.text_shape else 0
  if width != model.text_width:
    raise ValueError(
      f"model.text_width={model.text_width} does not fit data.text="
      f"{data.text!r}, which needs {width}"
      + ("." if width else ": there is no text but classes.")
    )


def _size(shape: tuple[int, int, int]) -> str:
  return " x ".join(map(str, shape))
