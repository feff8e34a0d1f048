"""A model of images and text: a ViT, a projector and the decoder.

As LLaVA (arXiv 2304.08485) has it: tokens of the image stand among those of the
text, first or behind some words (`models.image_places`), and are made of the
ViT's patches by a perceptron; here of a square of patches each, as efficient
models compress them. `models.vision_remember` stands between the decoder's
layers where it is asked for. With causal layers an image token has not seen the
text that follows it, so what it remembers does not depend on a question behind.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from models import (
  feed_forward,
  image_places,
  layers,
  patch_mixers,
  registry,
  rows,
  taps,
  transformer,
  transformer_checks,
)
from models.layer_stacking import written
from models.vision_remember import REGIONS, VisionRemember

KIND = "vision_language"
SHARDING_RULES = (*transformer.SHARDING_RULES, *patch_mixers.SHARDING_RULES)
REMEMBER = ("none", *REGIONS)
PROJECTORS = ("mean", "shuffle")
# Modules that calls without images do not run.
_OF_IMAGES = ("vision_trunk/", "image_projector/", "remembers_")


class VisionLanguage(transformer.Transformer):
  """From an image and tokens of a text to logits of the text.

  The decoder's fields are the model's own, and its parameters are named as
  those of a language model. Beside them are "vision_trunk", "image_projector"
  and "remembers_<layers before it>".

  Attributes:
    vision: fields of `patch_mixers.PatchMixer`, which has no logits here.
    vision_levels: depths of the ViT that are read, 0 for the embedded patches;
      the last one is projected, and all of them are remembered.
    compression: side of the square of patches that is one token.
    projector: what is made of a square before the perceptron: "mean", or
      "shuffle", which has its patches side by side as channels.
    remember: "local", "global" or "none"; see `vision_remember`.
    remember_layers: after how many layers of the decoder.
    remember_heads: of its attention.
  """

  vision: Mapping[str, Any] = FrozenDict()
  vision_levels: tuple[int, ...] = (1, 2, 3)
  compression: int = 1
  projector: str = "mean"
  remember: str = "none"
  remember_layers: tuple[int, ...] = ()
  remember_heads: int = 8

  def setup(self):
    super().setup()
    self._check_vision()
    fields = {**self.vision, "num_classes": 0, "remat": self.remat}
    self.vision_trunk = registry.build(
      patch_mixers.PatchMixer, {**fields, **self._dtypes}
    )
    self.image_projector = Projector(
      self.width, self.compression, self.projector, **self._dtypes
    )
    if self.remember != "none":
      self.remembers = {
        str(i): VisionRemember(
          self.vision_trunk.width,
          self.remember_heads,
          self.remember,
          self.implementation,
          **self._dtypes,
        )
        for i in self.remember_layers
      }

  def __call__(
    self,
    tokens: jax.Array,
    images: jax.Array | None = None,
    image_start: image_places.Start = 0,
    *,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: transformer.Cache | None = None,
    train: bool = False,
  ) -> jax.Array | tuple[jax.Array, transformer.Cache]:
    """Maps tokens of a text with an image in it to logits.

    Args:
      tokens: integers [batch, length], the text.
      images: floats [batch, height, width, channels], normalised; None for a
        text without, or that goes on from a cache that has its image: images
        are seen, and features remembered, in the call that brings them only.
      image_start: before which token the image stands, an integer or, of each
        row, integers [batch]; padding counts. 0 has the image first.
      positions: integers [batch, image tokens + length], of the text with its
        image, as `transformer.Transformer` has them.
      segments: integers, likewise.
      cache: as there; it holds the image tokens too, and where they are. It
        has room for one image a row.
      train: whether dropout drops; it takes its bits from "dropout".

    Returns:
      float32 [batch, length, classes], of the text, and the new cache if one
      was given. What the image's last token says is not among them.

    Raises:
      ValueError: if the fields contradict each other, an argument has another
        shape or dtype, the image cannot stand there, or it is a second one.
    """
    if images is None:
      if not isinstance(image_start, int) or image_start:
        raise ValueError(
          f"image_start is {image_start}, but images is None; it is the place "
          "of an image"
        )
      return super().__call__(
        tokens,
        positions=positions,
        segments=segments,
        cache=cache,
        train=train,
      )
    transformer_checks.check_arrays(
      self.vocabulary_size,
      tokens=tokens,
      positions=None,
      segments=None,
      token_types=None,
    )
    start = image_places.checked(image_start, tokens)
    _check_first_image(cache)
    maps = self.vision_trunk.hidden_maps(images, train=train)
    levels = [maps[level] for level in self.vision_levels]
    seen = self.image_projector(levels[-1])
    grid, count = seen.shape[1:3], seen.shape[1] * seen.shape[2]
    x = self.embed(tokens)
    if self.embedding_scale != 1.0:
      x = x * jnp.asarray(self.embedding_scale, x.dtype)
    x = image_places.joined(x, seen.reshape(len(x), count, -1), start)
    x = rows.by_rows(x, tokens=True)
    if cache is not None and positions is None:
      begun = written(cache)
      positions = begun + jnp.arange(x.shape[1])[None, :]
      positions = jnp.broadcast_to(positions, x.shape[:2])
    for name, given in (("positions", positions), ("segments", segments)):
      if given is not None and given.shape != x.shape[:2]:
        raise ValueError(
          f"{name} has shape {given.shape}; it must be [batch, image tokens + "
          f"length] = {x.shape[:2]}"
        )
    x = self.embed_dropout(x, deterministic=not train)

    def between(i, x):
      if self.remember == "none" or i + 1 not in self.remember_layers:
        return x
      h = image_places.image_of(x, start, count).reshape(len(x), *grid, -1)
      h = self.remembers[str(i + 1)](h, jnp.concatenate(levels, axis=-1))
      text = image_places.text_of(x, start, count)
      return image_places.joined(text, h.reshape(len(x), count, -1), start)

    span = image_places.span(start, count, len(x), positions)
    x, cache = self._through(
      x, positions, segments, cache, train, between, span
    )
    logits = self._logits(image_places.text_of(x, start, count))
    return logits if cache is None else (logits, cache)

  def _through(
    self,
    x,
    positions,
    segments,
    cache,
    train,
    between=lambda i, x: x,
    span=None,
  ):
    """As the decoder's; says where the image is, in this call or before."""
    if span is None:
      none = jnp.zeros((len(x), 2), jnp.int32)
      span = none if cache is None else cache[image_places.SPAN]
    span = taps.tap(self, image_places.SPAN, span)
    x, new = super()._through(x, positions, segments, cache, train, between)
    return x, None if new is None else {**new, image_places.SPAN: span}

  def init_cache(self, batch: int, length: int) -> transformer.Cache:
    """As the decoder's, with where the image is: nowhere yet."""
    span = jnp.zeros((batch, 2), jnp.int32)
    return {**super().init_cache(batch, length), image_places.SPAN: span}

  def example_inputs(self) -> dict[str, jax.Array]:
    """Arrays of one grey image and one token, to initialise with."""
    side = self.vision.get("image_size", patch_mixers.PatchMixer.image_size)
    return {
      "tokens": jnp.zeros((1, 1), jnp.int32),
      "images": jnp.zeros((1, side, side, 1)),
    }

  @nn.nowrap
  def apply(self, variables, *args, **options):
    """Does as Flax's; edits of what only images have rest in other calls.

    So a model with an edit of its ViT can decode. Patterns that begin with the
    names of these modules are meant.
    """
    images = options.get("images", args[1] if len(args) > 1 else None)
    resting = [name.startswith(_OF_IMAGES) for name, _ in self.edits]
    if images is not None or "method" in options or not any(resting):
      return super().apply(variables, *args, **options)
    # In their places, as what edits remember is kept by their numbers.
    active = tuple(
      ("logits", _unchanged) if rests else pair
      for rests, pair in zip(resting, self.edits, strict=True)
    )
    return self.clone(edits=active).apply(variables, *args, **options)

  def image_tokens(self, shape: Sequence[int]) -> int:
    """How many tokens there are of an image, of images of a shape.

    Args:
      shape: [batch, height, width, channels].

    Raises:
      ValueError: if height and width are no multiples of `compression` patches.
    """
    patch = self.vision.get("patch_size", patch_mixers.PatchMixer.patch_size)
    side = patch * self.compression
    height, width = shape[1:3]
    if height % side or width % side:
      raise ValueError(
        f"images are {height} x {width}; both must be multiples of {side}, as "
        f"patch_size is {patch} and compression {self.compression}"
      )
    return (height // side) * (width // side)

  def _check_vision(self) -> None:
    for field, known in (("remember", REMEMBER), ("projector", PROJECTORS)):
      if getattr(self, field) not in known:
        raise registry.unknown(field, getattr(self, field), known)
    depth = self.vision.get("depth", patch_mixers.PatchMixer.depth)
    levels = self.vision_levels
    if not levels or not all(0 <= level <= depth for level in levels):
      raise ValueError(
        f"vision_levels is {levels}; it must be depths from 0 to {depth}, the "
        "blocks of the ViT"
      )
    layers = self.remember_layers
    if self.remember != "none" and not (
      layers and all(1 <= layer <= self.depth for layer in layers)
    ):
      raise ValueError(
        f"remember_layers is {layers}; with remember={self.remember!r} it must "
        f"be numbers of layers from 1 to depth={self.depth}"
      )
    if self.compression < 1:
      raise ValueError(
        f"compression is {self.compression}; it must be 1 or more"
      )
    for field, least in (
      ("scan_layers", False),
      ("token_types", 0),
      ("embedding_norm", False),
    ):
      if getattr(self, field):
        raise ValueError(
          f"{field} is {getattr(self, field)!r}; with images it must be "
          f"{least!r}"
        )
    if self.position_encoding == "learned" or self.residual != "sum":
      raise ValueError(
        f"position_encoding is {self.position_encoding!r} and residual "
        f"{self.residual!r}; with images they must be another than 'learned', "
        "and 'sum'"
      )


def _check_first_image(cache: transformer.Cache | None) -> None:
  """Raises if a row has an image already, as far as that can be known."""
  span = None if cache is None else cache[image_places.SPAN]
  if span is None or isinstance(span, jax.core.Tracer):
    return
  if np.asarray(span).any():
    raise ValueError(
      f"images are given to a cache with images at {span.tolist()}; a row has "
      "one"
    )


def _unchanged(value, site):
  del site
  return value


class Projector(nn.Module):
  """Makes tokens of a map: of each square of patches one, by a perceptron."""

  width: int
  compression: int
  kind: str
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, r rows, r columns, D] to [batch, rows, columns, width]."""
    batch, height, width, channels = x.shape
    r = self.compression
    if height % r or width % r:
      raise ValueError(
        f"images are {height} x {width} patches, which must be multiples of "
        f"compression={r}"
      )
    # [B, a, r, b, r, D] -> [B, a, b, r, r, D]
    x = x.reshape(batch, height // r, r, width // r, r, channels)
    x = x.swapaxes(2, 3)
    mean = self.kind == "mean"
    x = x.mean((3, 4)) if mean else x.reshape(*x.shape[:3], -1)
    for name in ("expand", "shrink"):
      x = layers.Dense(
        self.width, dtype=self.dtype, param_dtype=self.param_dtype, name=name
      )(x)
      if name == "expand":
        x = feed_forward.exact_gelu(x)
    return taps.tap(self, "hidden_state", x)


# For images of `digits on a grid`, 64 patches of 4 x 4 grey pixels.
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  "vision_language": (
    VisionLanguage,
    {
      "width": 64,
      "depth": 4,
      "heads": 4,
      "mlp_width": 128,
      "init_scale": 0.125,
      "vision": FrozenDict(
        width=64,
        depth=3,
        heads=4,
        hidden_width=128,
        patch_size=4,
        image_size=32,
        class_token=False,
      ),
      "vision_levels": (1, 2, 3),
    },
  ),
}
