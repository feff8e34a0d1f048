"""The fields of `config.data` of images, latents and videos."""

import ml_collections

from input_pipeline import checks, latents, stream

MOVING_DIGITS = "moving_digits"


def default_config() -> ml_collections.ConfigDict:
  """The images of digits, which are the default of the room of latents.

  With name="moving_digits" they are videos: `image_size` is the side of a
  frame, and `video` has the rest.
  """
  config = latents.default_config()
  config.video = ml_collections.ConfigDict(
    dict(
      frames=8,
      digits=2,  # That move in a frame.
      # The most pixels that one moves in each direction from frame to frame.
      speed=2,
      train_examples=20_000,  # Of an epoch; the next one has others.
      eval_examples=240,
    )
  )
  return config


def is_video(config: ml_collections.ConfigDict) -> bool:
  """Whether `config.data` is of videos; it may be of another room."""
  return config.name == MOVING_DIGITS


def check_video(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for fields of which no videos can be made."""
  stream.check_reading(config)
  for name in ("frames", "digits", "speed", "train_examples", "eval_examples"):
    checks.check_integer(f"video.{name}", config.video[name], 1)
  checks.check_integer("image_size", config.image_size, 9)
  if config.channels != 1:
    raise ValueError(
      f"channels is {config.channels}, but digits that move are grey: it must "
      "be 1."
    )
  for name in ("latents", "autoencoder", "text", "classes"):
    if config[name]:
      raise ValueError(
        f"{name} is {config[name]!r}, but name={MOVING_DIGITS!r} has videos of "
        "pixels and of all ten digits: leave it empty."
      )
