"""What spoils an image, by name: `config.data.degradations`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import cv2
import numpy as np

from input_pipeline import call_spec, checks
from input_pipeline.images import decode
from input_pipeline.restoration.imresize import imresize


@dataclasses.dataclass(frozen=True)
class Place:
  """Where pixels are in the image that they were cut from.

  Attributes:
    rows: float [height, 1], from 0 at the top of the whole to 1 at the bottom.
    columns: float [1, width], likewise from left to right.
  """

  rows: np.ndarray
  columns: np.ndarray


class Degradation(Protocol):
  """A frozen dataclass, whose fields are its options; it checks them.

  Attributes:
    scale: by which it makes images smaller.
  """

  scale: int

  def __call__(
    self, pixels: np.ndarray, rng: np.random.Generator, place: Place
  ) -> np.ndarray:
    """Spoils uint8 [height, width, 3]; sides are multiples of `scale`."""


@dataclasses.dataclass(frozen=True)
class Bicubic:
  """Makes it smaller, as MATLAB does.

  Attributes:
    scale: by which; the one of the config if none is given.
  """

  scale: int

  def __post_init__(self):
    checks.check_integer("scale", self.scale, 2)

  def __call__(self, pixels, rng, place):
    """See `Degradation`."""
    del rng, place
    return imresize(pixels, 1 / self.scale)


@dataclasses.dataclass(frozen=True)
class Noise:
  """Gaussian noise of 0 to 255, cut off and then cast to bytes, not rounded.

  As all-in-one restoration does it (PromptIR, MTAIR); the result is half a grey
  level too dark on average.

  Attributes:
    sigma: deviation in grey levels, or a pair (least, greatest) of which each
      image draws one.
  """

  sigma: float | tuple[float, float] = 25
  scale: ClassVar[int] = 1

  def __post_init__(self):
    checks.check_interval("sigma", _interval(self.sigma))

  def __call__(self, pixels, rng, place):
    """See `Degradation`."""
    del place
    sigma = rng.uniform(*_interval(self.sigma))
    noisy = pixels + sigma * rng.standard_normal(pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Jpeg:
  """Compressed and decoded again, colours at half resolution (4:2:0).

  Attributes:
    quality: 1 to 100, or a pair (least, greatest) of which each image draws
      one.
  """

  quality: int | tuple[int, int] = 40
  scale: ClassVar[int] = 1

  def __post_init__(self):
    interval = _interval(self.quality)
    checks.check_interval("quality", interval)
    for end in interval:
      checks.check_integer("quality", end, 1)
    checks.check_number("quality", interval[1], 100)

  def __call__(self, pixels, rng, place):
    """See `Degradation`."""
    del place
    quality = int(rng.integers(*_interval(self.quality), endpoint=True))
    return decode.decode_image(decode.encode_image(pixels, "jpeg", quality))


@dataclasses.dataclass(frozen=True)
class Rain:
  """Bright streaks in one direction, added: a recipe of ours.

  It looks like the synthetic rain of the field's data sets (Rain100L), but is
  none of them, so figures do not compare with theirs.

  Attributes:
    amount: share of pixels in which a streak begins.
    length: pair (least, greatest) of a streak in pixels; each image draws one.
    angle: the most degrees from the vertical; likewise.
    strength: brightness of the brightest streak, where 1 is white on black.
  """

  amount: float = 0.004
  length: tuple[float, float] = (8, 24)
  angle: float = 30
  strength: float = 0.6
  scale: ClassVar[int] = 1

  def __post_init__(self):
    checks.check_number("amount", self.amount, 1)
    checks.check_interval("length", _interval(self.length))
    checks.check_number("angle", self.angle, 90)
    checks.check_number("strength", self.strength, 1)

  def __call__(self, pixels, rng, place):
    """See `Degradation`."""
    del place
    height, width, _ = pixels.shape
    begins = rng.random((height, width)) < self.amount
    bright = np.where(begins, rng.uniform(0.3, 1, (height, width)), 0)
    kernel = _line(
      rng.uniform(*_interval(self.length)),
      math.radians(rng.uniform(-self.angle, self.angle)),
    )
    streaks = cv2.filter2D(bright, -1, kernel, borderType=cv2.BORDER_REFLECT)
    added = 255 * self.strength * np.minimum(streaks, 1)
    return _to_bytes(pixels + added[:, :, None])


def _line(length: float, angle: float) -> np.ndarray:
  """A line through the middle of a square, one pixel wide, of brightness 1."""
  half = math.ceil(length / 2) + 1
  y, x = np.mgrid[-half : half + 1, -half : half + 1]
  along = abs(y * math.cos(angle) + x * math.sin(angle))
  across = abs(x * math.cos(angle) - y * math.sin(angle))
  ends = np.clip(length / 2 - along + 0.5, 0, 1)
  return ends * np.clip(1 - across, 0, 1)


@dataclasses.dataclass(frozen=True)
class Haze:
  """The scattering of light, image * t + light * (1 - t), t = exp(-beta depth).

  The depth, 0 to 1, is made up, since photographs come without it: it grows to
  the top of the image, with a wave of at most one period over it. So figures do
  not compare with those of data sets with true depths (RESIDE).

  Attributes:
    beta: pair (least, greatest) of the density; each image draws one.
    light: likewise, of the haze's brightness, where 1 is white.
  """

  beta: tuple[float, float] = (0.6, 1.8)
  light: tuple[float, float] = (0.7, 1.0)
  scale: ClassVar[int] = 1

  def __post_init__(self):
    checks.check_interval("beta", _interval(self.beta))
    checks.check_interval("light", _interval(self.light))
    checks.check_number("light", _interval(self.light)[1], 1)

  def __call__(self, pixels, rng, place):
    """See `Degradation`."""
    beta = rng.uniform(*_interval(self.beta))
    light = 255 * rng.uniform(*_interval(self.light))
    down, right, start = rng.uniform(-1, 1, 3)
    turns = down * place.rows + right * place.columns + start
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * turns)
    depth = 0.7 * (1 - place.rows) + 0.3 * wave  # [height, width]
    passed = np.exp(-beta * depth)[:, :, None]
    return _to_bytes(pixels * passed + light * (1 - passed))


# To add one, write its class and put it here.
DEGRADATIONS: dict[str, type[Degradation]] = {
  "bicubic": Bicubic,
  "haze": Haze,
  "jpeg": Jpeg,
  "noise": Noise,
  "rain": Rain,
}


@dataclasses.dataclass(frozen=True)
class Chain:
  """One degradation after another.

  Attributes:
    spec: as it is written in the config.
    steps: in order.
  """

  spec: str
  steps: Sequence[Degradation]

  def __call__(
    self, pixels: np.ndarray, rng: np.random.Generator, place: Place
  ) -> np.ndarray:
    """Spoils uint8 [height, width, 3]; sides are multiples of the scale."""
    for step in self.steps:
      pixels = step(pixels, rng, place)
      if step.scale > 1:
        place = Place(
          place.rows[step.scale // 2 :: step.scale],
          place.columns[:, step.scale // 2 :: step.scale],
        )
    return pixels


def create(spec: str, scale: int) -> Chain:
  """Makes a chain of degradations.

  Args:
    spec: names of `DEGRADATIONS` with options in Python's syntax, joined by
      "|", as in "bicubic|noise(sigma=5)".
    scale: by which the chain must make images smaller.

  Raises:
    ValueError: for other names or options, or another scale.
  """
  steps = []
  for call in call_spec.parse(spec, "bicubic|noise(sigma=5)"):
    if call.name not in DEGRADATIONS:
      raise ValueError(
        f"degradations: {call.name!r} is none; there are "
        f"{', '.join(DEGRADATIONS)}."
      )
    try:
      made = call.make(DEGRADATIONS[call.name], defaults={"scale": scale})
    except ValueError as error:
      raise ValueError(f"degradations: {error}") from error
    steps.append(made)
  found = math.prod(step.scale for step in steps)
  if found != scale:
    raise ValueError(
      f"degradations: {spec!r} makes images smaller by {found}, but scale is "
      f"{scale}: add or take away 'bicubic', or set config.data.scale={found}."
    )
  return Chain(spec, tuple(steps))


def _interval(value):
  return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
  return np.round(np.clip(pixels, 0, 255)).astype(np.uint8)
