"""Prompts as decoding takes them: checked, measured, padded on the left."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np

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
) -> tuple[int, int]:
  """What to pad prompts without their last tokens to, and slots of the cache.

  Args:
    model: with `max_length` as a limit if its `position_encoding` is "learned".
    prompts: a row of tokens each.
    max_tokens: the most that is added to each.
    cache_length: slots of the cache; what is needed if not given.
    images: an array [prompts, ...], the image of each; None for text alone.

  Raises:
    ValueError: prompt and new tokens do not fit; says what would. With images,
      the model sees none, or prompts are not one for each, of one length.
  """
  longest = max(map(len, prompts))
  if images is not None:
    seen = _image_tokens(model, prompts, images)
    needed = seen + longest - 1 + max_tokens
    if cache_length is not None:
      _check_fits(seen + longest, max_tokens, "cache_length", cache_length)
      return longest - 1, cache_length
    return longest - 1, -(-needed // _CACHE_MULTIPLE) * _CACHE_MULTIPLE
  before = longest - 1
  padded = 1 << (before - 1).bit_length() if before else 0
  if getattr(model, "position_encoding", None) == "learned":
    _check_fits(longest, max_tokens, "max_length", model.max_length)
    # A call may not be longer either, padding or not.
    padded = min(padded, model.max_length)
  if cache_length is not None:
    _check_fits(longest, max_tokens, "cache_length", cache_length)
  if cache_length is None:
    needed = padded + max_tokens
    return padded, -(-needed // _CACHE_MULTIPLE) * _CACHE_MULTIPLE
  return min(padded, cache_length - max_tokens), cache_length


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
  lengths = sorted({len(prompt) for prompt in prompts})
  if len(lengths) > 1:
    raise ValueError(
      f"prompts have lengths {lengths}; with images those of one call must be "
      "of one length, as no padding can stand between an image and its text: "
      "make a call for each length"
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
