"""PSNR and SSIM of restored images, as papers on restoration compute them.

Figures of other conventions differ by a decibel or more: 8-bit RGB first, then
the border off, then Y, which is not rounded.
"""

import math

import cv2
import numpy as np

# Of SSIM's window, and its constants for grey levels of 0 to 255.
_SIDE, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# From R, G, B of 0 to 1 to Y of 16 to 235, ITU-R BT.601, as MATLAB's rgb2ycbcr.
_Y = np.array([65.481, 128.553, 24.966])


def to_bytes(image: np.ndarray) -> np.ndarray:
  """Makes uint8 of floating [...], which is cut to [0, 1] and rounded."""
  return np.round(np.clip(np.asarray(image, np.float64), 0, 1) * 255).astype(
    np.uint8
  )


def luma(image: np.ndarray) -> np.ndarray:
  """Y of 16 to 235, not rounded.

  Args:
    image: [height, width, 3] RGB, uint8 or floating in [0, 1].

  Returns:
    float64 [height, width, 1].
  """
  return (_levels(image) / 255) @ _Y[:, None] + 16


def psnr(
  restored: np.ndarray, clean: np.ndarray, *, shave: int = 0, on: str = "y"
) -> float:
  """The peak signal-to-noise ratio in decibels, of a peak of 255.

  Args:
    restored: [height, width, 3] RGB. uint8 as the papers on super-resolution
      do it (`to_bytes`), or floating, which is cut to [0, 1] and not rounded,
      as those on all-in-one restoration.
    clean: likewise.
    shave: pixels at each edge that do not count; the scale in super-resolution.
    on: "y" for the luma, "rgb" for all three colours together.

  Returns:
    10 log10(255^2 / mean squared error); infinity for equal images.

  Raises:
    ValueError: for images of different sizes or of none, or another `on`.
  """
  a, b = _planes(restored, clean, shave, on)
  error = np.mean(np.square(a - b))
  return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(
  restored: np.ndarray, clean: np.ndarray, *, shave: int = 0, on: str = "y"
) -> float:
  """The structural similarity (Wang et al., 2004), as their `ssim_index.m`.

  Moments are weighted by a Gaussian of deviation 1.5 in a window of 11 x 11,
  wherever a whole one fits, and not corrected for the sample's size. Of RGB it
  is the mean of the three channels.

  Args:
    restored: as `psnr`.
    clean: likewise.
    shave: likewise.
    on: likewise.

  Raises:
    ValueError: as `psnr`, and for images in which no window fits.
  """
  a, b = _planes(restored, clean, shave, on)
  if min(a.shape[:2]) < _SIDE:
    raise ValueError(
      f"images are {a.shape[0]} x {a.shape[1]} pixels without {shave} at each "
      f"edge, but SSIM has windows of {_SIDE} x {_SIDE}."
    )
  mean_a, mean_b = _blur(a), _blur(b)
  var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
  both = _blur(a * b) - mean_a * mean_b
  light = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
  return float(np.mean(light * (2 * both + _C2) / (var_a + var_b + _C2)))


def figures(
  restored: np.ndarray, clean: np.ndarray, *, shave: int = 0
) -> dict[str, float]:
  """psnr_y, ssim_y, psnr_rgb and ssim_rgb; see `psnr` and `ssim`."""
  return {
    f"{measure.__name__}_{on}": measure(restored, clean, shave=shave, on=on)
    for on in ("y", "rgb")
    for measure in (psnr, ssim)
  }


def _planes(
  restored: np.ndarray, clean: np.ndarray, shave: int, on: str
) -> tuple[np.ndarray, np.ndarray]:
  """Both as float64 [height, width, channels], without their edges."""
  if on not in ("y", "rgb"):
    raise ValueError(f"on is {on!r}, but must be 'y' or 'rgb'.")
  shapes = restored.shape, clean.shape
  if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][-1] != 3:
    raise ValueError(
      f"restored is {list(shapes[0])} and clean {list(shapes[1])}, but both "
      "must be [height, width, 3] of one size."
    )
  height, width = shapes[0][:2]
  if shave < 0 or min(height, width) <= 2 * shave:
    raise ValueError(
      f"shave is {shave}, but must be from 0 and leave something of {height} x "
      f"{width} pixels."
    )
  inner = np.s_[shave : height - shave, shave : width - shave]
  convert = luma if on == "y" else _levels
  return convert(restored[inner]), convert(clean[inner])


def _levels(image: np.ndarray) -> np.ndarray:
  """Grey levels of 0 to 255 as float64."""
  if image.dtype == np.uint8:
    return image.astype(np.float64)
  if not np.issubdtype(image.dtype, np.floating):
    raise ValueError(
      f"images are {image.dtype}, but must be uint8, or floating in [0, 1]."
    )
  return np.clip(image.astype(np.float64), 0, 1) * 255


def _blur(image: np.ndarray) -> np.ndarray:
  """Weighted means of all whole windows, [height - 10, width - 10, ...]."""
  offsets = np.arange(_SIDE) - _SIDE // 2
  weights = np.exp(-0.5 * np.square(offsets / _SIGMA))
  weights /= weights.sum()
  blurred = cv2.sepFilter2D(image, cv2.CV_64F, weights, weights)
  half = _SIDE // 2
  inner = blurred[half:-half, half:-half]
  return inner.reshape(*inner.shape[:2], -1)
