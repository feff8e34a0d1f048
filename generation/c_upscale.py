"""C-Upscale (arXiv 2505.16976): larger images by the model of small ones.

A small image is resized, noised to a time on the way, and denoised again in
overlapping tiles of the model's own size, all of which go through a step before
any goes on. Three priors keep it from making the subject anew in each tile:

- structure: low frequencies of the clean estimate go over to those of the small
  image, by a share that falls from `structure` to 0;
- gate: the model looks at the shrunk canvas first, and a tile attends less to
  tokens of the prompt that the whole does not see there;
- mix: each tile has a prompt of its own besides, and what attention makes of
  both is mixed.

The paper has no public code, and we could read no more than its abstract and
summaries: the three priors, the synchronised tiles and the beginning at 0.45 of
the way are theirs, all formulas here are ours. DDIM is the solver, as what a
multistep solver remembers is of the canvas.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from generation import c_upscale_checks, sampler
from generation.denoiser import Denoiser, with_none
from generation.paths import Path
from generation.tiles import Tiles
from models import decoding, taps
from models.attends.regional import BIAS

CROSS_ATTENTION = "*/cross_attention/attention_weights"
# The least that a gate leaves of a token.
LEAST = 1e-4
# The start token is no part of a prompt.
_SPECIAL = 1


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=(
    "variables",
    "condition",
    "regions",
    "low",
    "start",
    "guidance",
    "structure",
  ),
  meta_fields=("model", "path", "tiles", "gate", "cutoff"),
)
@dataclasses.dataclass(frozen=True)
class TiledDenoiser:
  """Predicts of a canvas by its tiles; a `Denoise`.

  Attributes:
    model: hashable, of tiles; with cross_attend="regional" where there is a
      gate or a prompt for each region.
    variables: of the model.
    condition: of the whole, "label" or "text", rows for each of the batch.
    regions: likewise of each tile, [tiles, batch, ...], or None.
    low: the small image, resized, [batch, *shape, channels].
    start: the first time.
    guidance: w, or None.
    structure: share of the low frequencies at the first time, or None.
    path: of the model.
    tiles: of the canvas.
    gate: whether there is one.
    cutoff: highest frequency of the structure, of the highest there is.
  """

  model: nn.Module
  variables: Mapping[str, Any]
  condition: Mapping[str, jax.Array]
  regions: Mapping[str, jax.Array] | None
  low: jax.Array
  start: jax.Array
  guidance: jax.Array | None
  structure: jax.Array | None
  path: Path
  tiles: Tiles
  gate: bool
  cutoff: float

  def __call__(self, x, time, state):
    """Predicts of x [batch, *shape, channels] at a time."""
    biases = self.tile_biases(x, time) if self.gate else None
    pieces = self.tiles.cut(x)
    # One after the other, as all at once may be more than there is memory for.
    predictions = jax.lax.map(
      lambda each: self.predict_tile(*each, time),
      (pieces, self.regions, biases),
    )
    prediction = self.tiles.merge(predictions)
    if self.structure is None:
      return prediction, state
    clean = self.path.clean(prediction, x, time)
    share = self.structure * (1 + jnp.cos(jnp.pi * (1 - time / self.start))) / 2
    clean = exchange(clean, self.low, share, self.cutoff)
    return self.path.predict(clean, x, time), state

  def predict_tile(self, x, region, bias, time):
    """Predicts of a tile [batch, *window, channels].

    Args:
      x: the tile.
      region: its condition, or None.
      bias: of its gate, [batch, tokens of the tile, tokens of the prompt].
      time: a scalar.
    """
    condition = dict(self.condition)
    if region is not None:
      for name, value in region.items():
        condition[name] = jnp.concatenate([condition[name], value], axis=1)
    if self.guidance is not None:
      condition = with_none(condition, self.model.num_classes)
    state = {}
    if bias is not None:
      if self.guidance is not None:
        bias = jnp.concatenate([bias, jnp.zeros_like(bias)])
      for path in self._cross_attention():
        state = _put(state, (*path, BIAS), bias)
    denoise = Denoiser(
      self.model,
      self.variables,
      condition,
      self.guidance,
      getattr(self.model, "guided_channels", None) or None,
    )
    return denoise(x, time, state)[0]

  def tile_biases(self, x, time):
    """The gates, [tiles, batch, tokens of a tile, tokens of the prompt].

    The model looks at the canvas where every so many-th place is left, so that
    noise stays as it is.
    """
    whole = _with_prompt_alone(self.model)
    small = jax.image.resize(
      x, (len(x), *self.tiles.window, x.shape[-1]), "nearest"
    )
    times = jnp.full(len(x), time, jnp.float32)
    maps = taps.read(
      whole,
      self.variables,
      small,
      times,
      **self.condition,
      names=[CROSS_ATTENTION],
    )[1]
    seen = sum(value.mean(axis=1) for value in maps.values()) / len(maps)
    patch = self.model.patch_size
    tokens = self.tiles.in_patches(patch)
    seen = seen.reshape(len(x), *tokens.window, -1)
    seen = jax.image.resize(
      seen, (len(x), *tokens.shape, seen.shape[-1]), "linear"
    )
    cut = tokens.cut(log_gate(seen))
    return cut.reshape(*cut.shape[:2], -1, cut.shape[-1])

  def _cross_attention(self):
    """The paths of the model's cross-attention."""
    return [(f"block_{n}", "cross_attention") for n in range(self.model.depth)]


def log_gate(seen: jax.Array) -> jax.Array:
  """What is added to the scores of a prompt's tokens where they are not seen.

  Args:
    seen: maps [batch, *grid, tokens], the start token first.

  Returns:
    Like `seen`: the logarithm of the share that a place has of the token's
    greatest value, 1e-4 at least; 0 for the start token.
  """
  greatest = seen.max(axis=tuple(range(1, seen.ndim - 1)), keepdims=True)
  # A token that is seen nowhere, as padding, is seen alike everywhere.
  share = jnp.where(
    greatest > 0, seen / jnp.where(greatest > 0, greatest, 1), 1
  )
  gate = jnp.log(jnp.maximum(share, LEAST))
  special = np.arange(seen.shape[-1]) < _SPECIAL
  return jnp.where(special.reshape((1,) * (seen.ndim - 1) + (-1,)), 0, gate)


def exchange(
  clean: jax.Array, low: jax.Array, share: jax.Array, cutoff: float
) -> jax.Array:
  """Lets low frequencies of an image go over to those of another.

  Args:
    clean: [batch, ..., height, width, channels].
    low: the other, like it.
    share: g: 0 leaves `clean`, 1 gives all that is low to `low`.
    cutoff: which are low; see `low_pass`.
  """
  return clean + share * low_pass(low - clean, cutoff)


def low_pass(x: jax.Array, cutoff: float) -> jax.Array:
  """Keeps frequencies up to a share of the highest, along height and width.

  Args:
    x: [..., height, width, channels].
    cutoff: from 0, the mean alone, to 1, all; the ideal filter, whose band has
      corners.
  """
  height, width = x.shape[-3:-1]
  rows = np.abs(np.fft.fftfreq(height)) <= cutoff / 2
  columns = np.abs(np.fft.rfftfreq(width)) <= cutoff / 2
  band = (rows[:, None] & columns[None]).reshape(
    (1,) * (x.ndim - 3) + (height, width // 2 + 1, 1)
  )
  waves = jnp.fft.rfft2(x, axes=(-3, -2))
  kept = jnp.where(band, waves, 0)
  return jnp.fft.irfft2(kept, s=(height, width), axes=(-3, -2)).astype(x.dtype)


def upscale(
  model: nn.Module,
  variables: Mapping[str, Any],
  x: jax.Array,
  path: Path,
  *,
  condition: Mapping[str, jax.Array],
  key: jax.Array,
  scale: int = 2,
  steps: int = 50,
  guidance: float = 1.0,
  start: float = 0.45,
  overlap: tuple[int, ...] | None = None,
  structure: float = 1.0,
  gate: bool = True,
  mix: float = 0.0,
  describe: Callable[[jax.Array], Mapping[str, jax.Array]] | None = None,
  progress: sampler.Progress | None = None,
) -> jax.Array:
  """Makes images larger, with detail that they do not have.

  Args:
    model: with conditioning="cross" if there is a gate or a mix.
    variables: of the model.
    x: images of the model's own size, [batch, ..., height, width, channels].
    path: of the model.
    condition: of them: "label" [batch] or [batch, label_tokens], or "text"
      [batch, tokens, width], without padding.
    key: of the noise, one draw for the canvas.
    scale: how many times as high and wide.
    steps: of the whole path.
    guidance: w, for each tile.
    start: the share of the path, from its end, that is gone through.
    overlap: of tiles, a number a side; half of height and width if None.
    structure: share of the low frequencies at first; 0 for no exchange.
    gate: whether tiles attend less to what is not seen there.
    mix: how much of the attention is to the tile's own prompt.
    describe: gives the tiles' own prompts of what tiles [tiles, batch, ...] of
      the resized images look like, as `condition` with tiles before the batch
      and as many tokens; needed if there is a mix.
    progress: what is shown on the way.

  Returns:
    [batch, ..., scale height, scale width, channels].

  Raises:
    ValueError: for options that do not fit, or tiles that patches do not
      divide.
  """
  plan, times = c_upscale_checks.plan(
    model,
    path,
    condition=condition,
    scale=scale,
    steps=steps,
    guidance=guidance,
    start=start,
    overlap=overlap,
    structure=structure,
    gate=gate,
    mix=mix,
    described=describe is not None,
  )
  if x.shape[1:-1] != plan.window:
    raise ValueError(
      f"x has sides {x.shape[1:-1]}; the model has {plan.window}."
    )
  condition = {n: _tokens(n, value) for n, value in condition.items()}
  low = jax.image.resize(x, (len(x), *plan.shape, x.shape[-1]), "cubic")
  regions = None
  if mix:
    regions = {
      name: jax.vmap(functools.partial(_tokens, name))(jnp.asarray(value))
      for name, value in describe(plan.cut(low)).items()
    }
  denoise = TiledDenoiser(
    _regional(model, gate, mix),
    variables,
    condition,
    regions,
    low,
    jnp.float32(times[0]),
    None if guidance == 1 else jnp.float32(guidance),
    jnp.float32(structure) if structure else None,
    path,
    plan,
    gate,
    1 / scale,
  )
  noise = jax.random.normal(key, low.shape, low.dtype)
  return sampler.sample(
    denoise,
    path.add_noise(low, noise, float(times[0])),
    path,
    times=times,
    progress=progress,
  )


def _regional(model, gate, mix):
  """The model of a tile."""
  if gate or mix:
    tokens = model.label_tokens * (2 if mix else 1)
    model = model.clone(
      cross_attend="regional",
      cross_attend_options={"mix": mix},
      label_tokens=tokens,
    )
  return decoding.hashable(model)


def _with_prompt_alone(model):
  """The model of the whole canvas."""
  mix = model.cross_attend_options["mix"]
  tokens = model.label_tokens // (2 if mix else 1)
  return decoding.hashable(
    model.clone(
      cross_attend="full", cross_attend_options={}, label_tokens=tokens
    )
  )


def _tokens(name, value):
  """Labels [batch] as [batch, 1]; others as they are."""
  value = jnp.asarray(value)
  return value[:, None] if name == "label" and value.ndim == 1 else value


def _put(tree, path, value):
  """The nested dictionary with a value at a path more."""
  first, *rest = path
  inner = _put(tree.get(first, {}), rest, value) if rest else value
  return {**tree, first: inner}
