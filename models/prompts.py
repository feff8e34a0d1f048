"""Prompts as decoding takes them: checked, measured, padded on the left."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from models import image_places

Prompts = Sequence[Sequence[int]]
# Prompts are padded to a power of two and a cache is a multiple of this, so
# that other prompts find what is compiled.
_CACHE_MULTIPLE = 128


def check_prompts(model: nn.Module, prompts: Prompts) -> None:
  """Raises a ValueError if the model cannot begin with these tokens."""
  if not len(prompts):
    raise ValueError(f"{prompts=} has no row.")
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise ValueError(
        f"prompts[{i}] is empty, and a model goes on from a token: begin with"
        " the tokenizer's end_of_text if it has one."
      )
    for token in prompt:
      if not 0 <= token < model.vocabulary_size:
        raise ValueError(
          f"prompts[{i}] has the token {token}, which is not below the model's"
          f" vocabulary_size={model.vocabulary_size} and 0 or more."
        )


def prompt_lengths(
  model: nn.Module,
  prompts: Prompts,
  max_tokens: int,
  cache_length: int | None = None,
  images: Any = None,
  image_start: Any = 0,
) -> tuple[int, int]:
  """What to pad prompts without their last tokens to, and slots of the cache.

  The tokens of images are in the slots, but not in what prompts are padded to.

  Args:
    model: with `max_length` as a limit if its `position_encoding` is "learned".
    prompts: a row of tokens each.
    max_tokens: the most that is added to each.
    cache_length: slots of the cache; what is needed if not given.
    images: an array [prompts, ...], the image of each; None for text alone.
    image_start: how many tokens of a prompt are before its image, one number
      for all or one for each.

  Raises:
    ValueError: prompt and new tokens do not fit; says what would. With images,
      the model sees none, or prompts are not one for each, or have no token
      behind their image.
  """
  longest = max(map(len, prompts))
  seen = 0
  if images is not None:
    seen = _image_tokens(model, prompts, images)
    image_starts(prompts, image_start)
  before = longest - 1
  padded = 1 << (before - 1).bit_length() if before else 0
  if getattr(model, "position_encoding", None) == "learned":
    _check_fits(longest, max_tokens, "max_length", model.max_length)
    # A call may not be longer either, padding or not.
    padded = min(padded, model.max_length)
  if cache_length is not None:
    _check_fits(seen + longest, max_tokens, "cache_length", cache_length)
  if cache_length is None:
    needed = seen + padded + max_tokens
    return padded, -(-needed // _CACHE_MULTIPLE) * _CACHE_MULTIPLE
  return min(padded, cache_length - max_tokens - seen), cache_length


def image_starts(prompts: Prompts, image_start: Any) -> np.ndarray:
  """How many tokens of each prompt are before its image, int32 [prompts].

  Args:
    prompts: a row of tokens each.
    image_start: one number for all, or one for each.

  Raises:
    ValueError: if they are neither, or an image has no token behind it: a model
      goes on from a token.
  """
  starts = np.asarray(image_start)
  image_places.check_form(starts, len(prompts))
  starts = np.broadcast_to(starts, (len(prompts),)).astype(np.int32)
  for i, (start, prompt) in enumerate(zip(starts, prompts, strict=True)):
    if not 0 <= start < len(prompt):
      raise ValueError(
        f"image_start is {start} for prompts[{i}], which has {len(prompt)} "
        "tokens; it must be 0 or more and leave a token behind the image, from "
        "which to go on"
      )
  return starts


def _image_tokens(model: nn.Module, prompts: Prompts, images: Any) -> int:
  """How many tokens an image is; raises as `prompt_lengths` says."""
  if not hasattr(model, "image_tokens"):
    raise ValueError(
      f"images are given, but the model is a {type(model).__name__}, which "
      "sees none; models.vision_language.VisionLanguage does"
    )
  if len(images) != len(prompts):
    raise ValueError(
      f"images are {len(images)} and prompts {len(prompts)}; each prompt needs "
      "its own"
    )
  return model.image_tokens(images.shape)


def _check_fits(longest, max_tokens, name, limit):
  # The last new token is drawn and never read.
  room = limit - longest + 1
  if max_tokens <= room:
    return
  fits = [f"max_tokens={room}"] if room > 0 else []
  if max_tokens <= limit:
    fits.append(f"a prompt of at most {limit - max_tokens + 1} tokens")
  raise ValueError(
    f"a prompt of {longest} tokens and max_tokens={max_tokens} are more than"
    f" {name}={limit} has room for"
    + (f": {' or '.join(fits)} would fit." if fits else ".")
  )


def left_pad(prompts: Prompts, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and positions, int32 [batch, length]; padding has position -1."""
  tokens = np.zeros((len(prompts), length), np.int32)
  positions = np.full((len(prompts), length), -1, np.int32)
  for i, prompt in enumerate(prompts):
    first = length - len(prompt)
    tokens[i, first:] = prompt
    positions[i, first:] = np.arange(len(prompt))
  return tokens, positions
