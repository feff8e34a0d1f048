"""Videos of digits that move on straight lines and bounce off the edges."""

import dataclasses

import numpy as np

from input_pipeline import digits
from input_pipeline.stream import Example

_SIDE = 8  # Of a digit.


@dataclasses.dataclass(frozen=True)
class MovingDigits:
  """Makes videos in the way of Moving MNIST (arXiv 1502.04681).

  Digits, places and velocities are whole pixels, so a digit is the same pixels
  in each frame but where another one is brighter. None stands still.

  Attributes:
    split: of `input_pipeline.digits`, whose handwriting is used.
    frames: of a video.
    side: of a frame in pixels, above the 8 of a digit.
    count: how many digits move.
    speed: the most pixels from a frame to the next, in each direction.
  """

  split: str
  frames: int = 8
  side: int = 16
  count: int = 2
  speed: int = 2

  def example(self, rng: np.random.Generator) -> Example:
    """Draws a video.

    Args:
      rng: decides all that is random.

    Returns:
      image uint8 [frames, side, side, 1], black with digits up to 255, and
      label int32 [count], their classes in ascending order; [] of one digit.
    """
    pixels, labels = digits.load(self.split)
    chosen = rng.integers(len(labels), size=self.count)
    drawn = np.round(pixels[chosen] * (255 / 16)).astype(np.uint8)
    room = self.side - _SIDE
    first = rng.integers(room + 1, size=(self.count, 2))
    # All pairs but (0, 0), which is in the middle of them.
    number = (2 * self.speed + 1) ** 2
    steps = rng.integers(number - 1, size=self.count)
    steps = steps + (steps >= number // 2)
    velocity = np.stack(np.divmod(steps, 2 * self.speed + 1), -1) - self.speed
    time = np.arange(self.frames)[:, None, None]
    places = bounce(first + time * velocity, room)  # [frames, count, 2]
    video = np.zeros((self.frames, self.side, self.side, 1), np.uint8)
    for frame, at in zip(video[..., 0], places, strict=True):
      for digit, (y, x) in zip(drawn, at, strict=True):
        part = frame[y : y + _SIDE, x : x + _SIDE]
        np.maximum(part, digit, out=part)
    label = np.sort(labels[chosen]).astype(np.int32)
    return {"image": video, "label": label if self.count > 1 else label[0]}


def bounce(places: np.ndarray, room: int) -> np.ndarray:
  """Folds places on an endless line into 0 to `room`, mirrored at both ends."""
  folded = places % (2 * room)
  return room - abs(room - folded)


class MovingDigitsReader:
  """A `stream.Reader` of videos; each is a function of its generator alone.

  Attributes:
    num_examples: of an epoch.
  """

  def __init__(self, source: MovingDigits, num_examples: int):
    self.num_examples = num_examples
    self._source = source

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    """A video to train on; `index` decides nothing."""
    del index
    counts = {"mask": np.float32(1), "damaged": np.False_}
    return self._source.example(rng) | counts

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """A video with its index; padding after the last one."""
    example = self(index, rng)
    if index < self.num_examples:
      return example | {"index": np.int32(index)}
    blank = {name: np.zeros_like(array) for name, array in example.items()}
    return blank | {"index": np.int32(-1)}
