"""Decoding: a language model goes on from prompts, token by token.

A model is anything with the cache of `models.transformer.Transformer`:
`init_cache(batch, length)` and `apply(variables, tokens, positions=, cache=)`.

Rows are padded on the left with position -1, so that all of them write the same
slot of the cache. All of a prompt but its last token is put into the cache at
once, for which no logits are needed; then blocks of steps run, each block one
`lax.scan` in one call, and between blocks the host looks at what there is. A
row that has ended goes on as padding and keeps still.

Images, for models that see them, go into the cache with the prompt, before it
or behind some words of it; padding is before both.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from models import taps, token_sampling
from models.prompts import (
  check_prompts,
  image_starts,
  left_pad,
  prompt_lengths,
)


class State(NamedTuple):
  """What one block of steps leaves to the next.

  Attributes:
    cache: the model's.
    token: int32 [batch], the last of each row, not in the cache yet.
    position: int32 [batch], its position; -1 if the row has ended.
    step: int32 scalar, how many tokens were drawn.
  """

  cache: Any
  token: jax.Array
  position: jax.Array
  step: jax.Array


def generate(
  model: nn.Module,
  variables: Mapping[str, Any],
  prompts: Sequence[Sequence[int]],
  **options: Any,
) -> list[list[int]]:
  """Goes on from prompts; takes the options of `stream` and raises its errors.

  Returns:
    The new tokens of each row, its stop token among them if it came to one.
  """
  rows = [[] for _ in prompts]
  for block in stream(model, variables, prompts, **options):
    for row, new in zip(rows, block, strict=True):
      row.extend(new)
  return rows


def stream(
  model: nn.Module,
  variables: Mapping[str, Any],
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  seed: int = 0,
  rows: Sequence[int] | None = None,
  stop: int | str | Sequence[int | str] = (),
  decode: Callable[[list[int]], str] | None = None,
  cache_length: int | None = None,
  block: int = 16,
  images: Any = None,
  image_start: int | Sequence[int] = 0,
) -> Iterator[list[list[int]]]:
  """Goes on from prompts and yields new tokens as they come.

  What a row draws depends on the seed, its number and the step: not on the
  prompts beside it (but for the rounding of another batch size), and not on
  `block`.

  Args:
    model: a language model with a cache.
    variables: its variables.
    prompts: a row of tokens each, of any lengths.
    max_tokens: the most to add to a row.
    temperature: 0 takes the most probable token. This and the next three as in
      `models.token_sampling`.
    top_k: draw from the k most probable tokens; 0: from all.
    top_p: draw from the most probable that have this mass together.
    min_p: draw from what has at least this part of the largest probability.
    seed: of the draws.
    rows: a number a row; 0, 1, ... if not given.
    stop: what ends a row, tokens and strings. The row's last token is the stop
      token, or the one with which its new text has the string.
    decode: from a row's new tokens to their text, for strings in `stop`.
    cache_length: the tokens that the cache has room for, padding among them;
      as many as needed if not given.
    block: steps between two looks of the host.
    images: floats [rows, height, width, channels], an image for each prompt, as
      the model takes them; None for text alone.
    image_start: how many tokens of a prompt are before its image, of all or of
      each; see `image_places.from_placeholders`.

  Yields:
    For each row the tokens that are new since the last time, none if it has
    ended. It ends when all have.

  Raises:
    ValueError: an option is out of its range, a prompt is empty or has a token
      that the model does not know, or prompt and new tokens do not fit; with
      images, the model sees none, or a prompt does not go on behind its own.
  """
  how = token_sampling.sampling(temperature, top_k, top_p, min_p)
  for name, value in (("max_tokens", max_tokens), ("block", block)):
    if value != int(value) or value < 1:
      raise ValueError(f"{name}={value} is not an integer that is 1 or more.")
  check_prompts(model, prompts)
  padded, slots = prompt_lengths(
    model, prompts, max_tokens, cache_length, images, image_start
  )
  stop = [stop] if isinstance(stop, int | str) else stop
  strings = [s for s in stop if isinstance(s, str)]
  if strings and decode is None:
    raise ValueError(f"{stop=} has strings, which need decode=.")
  if "" in strings:
    raise ValueError(f"{stop=} has an empty string, which ends nothing.")
  rows = range(len(prompts)) if rows is None else rows
  if len(rows) != len(prompts):
    raise ValueError(f"{rows=} are not as many as {len(prompts)} prompts.")
  step = functools.partial(
    take_steps,
    hashable(model),
    variables,
    how=how,
    keys=token_sampling.row_keys(seed, jnp.asarray(rows)),
    stop=jnp.asarray([s for s in stop if not isinstance(s, str)], jnp.int32),
    max_tokens=max_tokens,
    length=min(block, max_tokens),
  )
  state = start(
    model,
    variables,
    prompts,
    padded=padded,
    slots=slots,
    images=images,
    image_start=image_start,
  )
  return _blocks(step, state, strings, decode)


def _blocks(step, state, strings, decode):
  """Yields blocks until all rows have ended."""
  live = np.ones(len(state.token), bool)
  rows = [[] for _ in live]
  while live.any():
    state, tokens = step(state=state, live=live)
    tokens, position = jax.device_get((tokens, state.position))
    block = [[int(t) for t in row if t >= 0] for row in tokens]
    live = position >= 0
    if strings:
      for i, new in enumerate(block):
        block[i], stopped = _until_stop(rows[i], new, strings, decode)
        live[i] &= not stopped
        rows[i] += block[i]
    yield block


def _until_stop(before, new, strings, decode):
  """Cuts `new` after the token that completes a string; says if one does."""

  def stops(count):
    text = decode(before + new[:count])
    return any(s in text for s in strings)

  if not new or not stops(len(new)):
    return new, False
  return new[: next(n for n in range(1, len(new) + 1) if stops(n))], True


def start(
  model: nn.Module,
  variables: Mapping[str, Any],
  prompts: Sequence[Sequence[int]],
  *,
  padded: int,
  slots: int,
  images: Any = None,
  image_start: int | Sequence[int] = 0,
) -> State:
  """The state before the first step: all but the last tokens in the cache.

  Args:
    model: a language model with a cache.
    variables: its variables.
    prompts: a row of tokens each.
    padded: the length that prompts without their last tokens are padded to.
    slots: tokens that the cache has room for.
    images: as of `stream`.
    image_start: as there.
  """
  if images is None and not padded and taps.remembers(model):
    # What edits remember is made in the call that fills the cache.
    padded, slots = 1, slots + 1
  bodies, seen, at = [p[:-1] for p in prompts], 0, {}
  tokens, positions = left_pad(bodies, padded)
  if images is not None:
    images = jnp.asarray(images)
    seen = model.image_tokens(images.shape)
    # Those of the whole row; what pads it is before both text and image.
    _, positions = left_pad(
      [[0] * (seen + len(p)) for p in bodies], seen + padded
    )
    pads = np.array([padded - len(p) for p in bodies], np.int32)
    at = {
      "images": images,
      "image_start": pads + image_starts(prompts, image_start),
    }
  state = State(
    cache=_prefill(
      hashable(model), variables, tokens, positions, at, slots=slots
    ),
    token=jnp.asarray([p[-1] for p in prompts], jnp.int32),
    position=jnp.asarray([seen + len(p) - 1 for p in prompts], jnp.int32),
    step=jnp.zeros((), jnp.int32),
  )
  return beside(variables, state)


def mesh_of(variables):
  """The mesh that variables are on; None if they are on none."""
  shardings = (getattr(x, "sharding", None) for x in jax.tree.leaves(variables))
  return next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)


def beside(variables, state):
  """Puts a state on the mesh of the variables, where each block leaves it.

  Otherwise the second block would be compiled anew.
  """
  mesh = mesh_of(variables)
  if mesh is None:
    return state
  return jax.tree.map(
    lambda x: jax.device_put(
      x, NamedSharding(mesh, getattr(x.sharding, "spec", PartitionSpec()))
    ),
    state,
  )


@functools.partial(jax.jit, static_argnames=("model", "slots"))
def _prefill(model, variables, tokens, positions, images=None, *, slots):
  """Fills a cache; `images` has arguments of the model for them, if any."""
  cache = model.init_cache(tokens.shape[0], slots)
  if not tokens.shape[1] and not images:
    return cache
  # Nobody takes the logits, so the compiler drops the head.
  return model.apply(
    variables,
    tokens,
    positions=positions,
    cache=cache,
    train=False,
    **(images or {}),
  )[1]


@functools.partial(
  jax.jit, static_argnames=("model", "length"), donate_argnames="state"
)
def take_steps(
  model, variables, *, state, live, how, keys, stop, max_tokens, length
):
  """Takes `length` steps.

  Args:
    model: hashable.
    variables: its variables.
    state: its buffers are used again.
    live: bool [batch], false for a row that the host has ended.
    how: the `token_sampling.Sampling`.
    keys: random keys [batch].
    stop: int32 [any], tokens that end a row.
    max_tokens: the step at which all rows end.
    length: the number of steps.

  Returns:
    (state, tokens): tokens int32 [batch, length], -1 after a row's end.
  """

  def step(state, _):
    logits, cache = model.apply(
      variables,
      state.token[:, None],
      positions=state.position[:, None],
      cache=state.cache,
      train=False,
    )
    drawn = token_sampling.draw(
      how, logits[:, 0], token_sampling.step_keys(keys, state.step)
    )
    live = state.position >= 0
    goes_on = live & ~(drawn[:, None] == stop[None, :]).any(axis=1)
    goes_on &= state.step + 1 < max_tokens
    after = State(
      cache=cache,
      token=jnp.where(live, drawn, 0),
      position=jnp.where(goes_on, state.position + 1, -1),
      step=state.step + 1,
    )
    return after, jnp.where(live, drawn, -1)

  state = state._replace(position=jnp.where(live, state.position, -1))
  state, tokens = jax.lax.scan(step, state, None, length=length)
  return state, tokens.T


def cache_bytes(model: nn.Module, batch: int, length: int) -> dict[str, int]:
  """Returns the bytes of a cache by the name of its arrays, over all layers.

  Args:
    model: a language model with a cache, or a mixer.
    batch: number of rows.
    length: how many tokens a row has at most.
  """
  cache = jax.eval_shape(lambda: model.init_cache(batch, length))
  total = collections.Counter()
  for path, array in jax.tree_util.tree_leaves_with_path(cache):
    total[path[-1].key] += array.size * array.dtype.itemsize
  return dict(total)


def cache_bytes_per_token(model: nn.Module, length: int) -> dict[str, int]:
  """Returns what one token more adds to a row's cache of `length` tokens.

  What does not grow, as the memory of linear attention, adds nothing.
  """
  before, after = (cache_bytes(model, 1, length + n) for n in (0, 1))
  return {name: after[name] - before[name] for name in after}


def hashable(model):
  """The model with its mappings frozen, to be a static argument."""
  return model.clone(
    **{
      name: flax.core.freeze(dict(value))
      for name, value in vars(model).items()
      if isinstance(value, Mapping) and not name.startswith("_")
    }
  )
