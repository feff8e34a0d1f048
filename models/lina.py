"""LINA: images from linear attention, a few tokens at a time.

A masked autoregressive model of continuous tokens (arXiv 2601.22630, on NOVA,
arXiv 2412.14169, and MAR, arXiv 2406.11838): the transformer reads the tokens
that are there and says of each place what shall be there, and a small head
draws the token by flow matching.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, lina_checks, lina_layers, normalization, taps
from models.flow_head import FlowHead
from models.lina_attention import LinaAttention

KIND = "generation"
# Heads, and hidden channels of all feed-forward layers.
SHARDING_RULES = (
  ("attention/(query|key|value)/kernel", (None, "model", None)),
  ("attention/(query|key|value)/bias", ("model", None)),
  ("attention/(key|value|weight)_gate", (None, "model")),
  # [heads and their channels, width].
  ("attention/out/kernel", ("model", None)),
  ("attention/convolution/kernel", (None, None, None, "model")),
  ("attention/convolution/bias", ("model",)),
  ("mlp/(expand|gate)/kernel", (None, "model")),
  ("mlp/(expand|gate)/bias", ("model",)),
  ("mlp/shrink/kernel", ("model", None)),
)
# What the authors do not train, as patterns of paths (`training.paths`).
FROZEN = (
  "(label_embed|text_embed)/norm",
  "connector/position",
  "connector/patch_embed",
)


class Lina(taps.Tapped):
  """From a class or a text, and some tokens of an image, to the others.

  With `model.apply(variables, ..., method=...)`:

      condition = "condition"(labels)
      z = "encode_decode"(condition, tokens, visible)
      velocity = "velocity"(x_t, t, z)

  Attributes:
    width: channels of a token within the model.
    heads: heads of each attention.
    connector_layers: layers that read the class or text.
    encoder_layers: layers that read the visible tokens.
    decoder_layers: layers that read all tokens; gates and convolutions are
      there only.
    flow_layers: blocks of the flow head.
    queries: tokens that the connector makes, a square.
    grid: rows and columns of the tokens of an image, numbered row by row.
    token_dim: channels of a token: patch_size^2 times those of the latents.
    patch_size: side in latents of a token.
    num_classes: number of classes; the index `num_classes` is for none.
    text_width: channels of the text that takes the place of classes; 0 for
      classes.
    gate: gates of keys and values, a key of `lina_attention.GATES`.
    convolution: whether decoder layers convolve.
    normalizer: "division" or "subtraction", of linear attention.
    attention: "linear" or "softmax", in all layers.
    remat: whether the backward pass computes each block again instead of
      keeping its activations.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    feed_forward_implementation: which implementation of the feed-forward layers
      with their norms runs, see `feed_forward_branch.kernel`.
    dtype: dtype of the computation; attention and velocities are float32.
    param_dtype: dtype of the parameters.
  """

  width: int = 768
  heads: int = 12
  connector_layers: int = 16
  encoder_layers: int = 16
  decoder_layers: int = 16
  flow_layers: int = 6
  queries: int = 64
  grid: tuple[int, int] = (16, 16)
  token_dim: int = 16
  patch_size: int = 1
  num_classes: int = 1000
  text_width: int = 0
  gate: str = "key_value"
  convolution: bool = True
  normalizer: str = "division"
  attention: str = "linear"
  remat: bool = False
  implementation: str = "auto"
  feed_forward_implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  def setup(self):
    lina_checks.check_fields(self)
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    stack = functools.partial(self._stack, dtypes)
    if self.text_width:
      self.text_embed = lina_layers.TextEmbedding(self.width, **dtypes)
    else:
      self.label_embed = lina_layers.LabelEmbedding(
        self.num_classes, self.width, **dtypes
      )
    self.connector = lina_layers.Connector(
      self.queries, self.token_dim, stack(self.connector_layers), **dtypes
    )
    self.patch_embed = lina_layers.dense(self.width, self.token_dim, **dtypes)
    self.mask_token = self.param(
      "mask_token",
      nn.initializers.normal(0.02),
      (1, self.width),
      self.param_dtype,
    )
    self.encoder = stack(self.encoder_layers)()
    self.decoder = stack(
      self.decoder_layers,
      gate=self.gate,
      grid=tuple(self.grid) if self.convolution else None,
    )()
    self.norm = normalization.LayerNorm(epsilon=1e-5, **dtypes)
    self.flow_head = FlowHead(
      self.width, self.flow_layers, self.feed_forward_implementation, **dtypes
    )

  def __call__(
    self,
    tokens: jax.Array,
    labels: jax.Array,
    visible: jax.Array,
    t: jax.Array,
    noise: jax.Array,
  ) -> jax.Array:
    """Returns the velocities [batch, N, token_dim] of tokens in noise.

    Args:
      tokens: [batch, N, token_dim].
      labels: what `condition` takes.
      visible: see `encode_decode`.
      t: times [batch, N], from 0 to 1000, the share of noise in thousandths.
      noise: like `tokens`.
    """
    z = self.encode_decode(self.condition(labels), tokens, visible)
    share = t[..., None] / 1000
    return self.velocity(share * noise + (1 - share) * tokens, t, z)

  def condition(
    self, given: jax.Array, lengths: jax.Array | None = None
  ) -> jax.Array:
    """Returns the tokens [batch, queries, width] that an image is made of.

    Args:
      given: classes, integers [batch], or text [batch, tokens, text_width].
      lengths: integers [batch]: how many tokens of the text are no padding;
        those after them are replaced. 0 stands for no text. All if None.

    Raises:
      ValueError: if `given` has another shape or dtype, or, where its values
        are known, for a class that does not exist.
    """
    lina_checks.check_condition(self, given, lengths)
    if self.text_width:
      x = self.text_embed(given.astype(self.dtype), lengths)
    else:
      x = self.label_embed(given)
    return self.connector(x)

  def encode_decode(
    self, condition: jax.Array, tokens: jax.Array, visible: jax.Array
  ) -> jax.Array:
    """Returns what shall be in each place, [batch, N, width].

    Args:
      condition: what `condition` returned.
      tokens: [batch, N, token_dim]; those that are not visible may hold
        anything.
      visible: integers [batch, V]: the places of the visible tokens, each
        once, in any order. N stands for padding, so that rows may have fewer
        than V. The encoder's work grows with V.

    Raises:
      ValueError: for another shape or dtype, or, where the values are known,
        for a place that does not exist.
    """
    lina_checks.check_tokens(self, condition, tokens, visible)
    queries, places = self.queries, tokens.shape[1]
    # Padding goes to the end.
    visible = jnp.sort(visible, axis=1)
    rows = jnp.arange(len(visible))[:, None]
    seen = jnp.zeros(tokens.shape[:2], bool)
    seen = seen.at[rows, visible].set(True, mode="drop")[..., None]
    x = self.patch_embed(jnp.where(seen, tokens, 0).astype(self.dtype))
    x = jnp.where(seen, x, self.mask_token.astype(self.dtype)[None])
    x = x + lina_layers.sincos_2d(self.grid, self.width).astype(x.dtype)[None]
    read = jnp.take_along_axis(x, visible[..., None], axis=1, mode="clip")
    lengths = queries + (visible < places).sum(1)
    y = self.encoder(jnp.concatenate([condition, read], axis=1), lengths)
    x = x.at[rows, visible].set(y[:, queries:], mode="drop")
    y = self.decoder(jnp.concatenate([y[:, :queries], x], axis=1))
    return self.norm(y[:, queries:])

  def velocity(self, x_t: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
    """Returns the flow head's velocity; see `FlowHead`.

    Raises:
      ValueError: if the shapes do not fit.
    """
    lina_checks.check_velocity(self, x_t, t, z)
    return self.flow_head(x_t.astype(self.dtype), t, z)

  @nn.nowrap
  def patchify(self, latents: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to tokens [batch, N, token_dim].

    The channels of a token are those of its latents, row by row.

    Raises:
      ValueError: if the latents have another shape.
    """
    lina_checks.check_latents(self, latents)
    batch, channels, p = len(latents), latents.shape[-1], self.patch_size
    rows, columns = self.grid
    x = latents.reshape(batch, rows, p, columns, p, channels)
    return x.swapaxes(2, 3).reshape(batch, rows * columns, self.token_dim)

  @nn.nowrap
  def unpatchify(self, tokens: jax.Array) -> jax.Array:
    """The inverse of `patchify`."""
    batch, p, (rows, columns) = len(tokens), self.patch_size, self.grid
    x = tokens.reshape(batch, rows, columns, p, p, -1).swapaxes(2, 3)
    return x.reshape(batch, rows * p, columns * p, -1)

  @nn.nowrap
  def example_inputs(self) -> dict[str, jax.Array]:
    """Returns arguments of the call, of one image, to initialise with."""
    places = math.prod(self.grid)
    tokens = jnp.zeros((1, places, self.token_dim))
    if self.text_width:
      labels = jnp.zeros((1, 1, self.text_width))
    else:
      labels = jnp.zeros((1,), jnp.int32)
    return {
      "tokens": tokens,
      "labels": labels,
      "visible": jnp.zeros((1, 1), jnp.int32),
      "t": jnp.zeros((1, places)),
      "noise": tokens,
    }

  def _stack(self, dtypes, depth, **options) -> functools.partial:
    attend = functools.partial(
      LinaAttention,
      self.heads,
      self.attention,
      self.normalizer,
      implementation=self.implementation,
      **options,
      **dtypes,
    )
    block = nn.remat(lina_layers.Block) if self.remat else lina_layers.Block
    return functools.partial(
      lina_layers.Stack,
      depth,
      functools.partial(
        block, attend, self.feed_forward_implementation, **dtypes
      ),
    )


_WIDTHS = {768: 12, 1024: 16, 1536: 16}
VARIANTS = {
  f"lina_d48w{width}": (Lina, {"width": width, "heads": heads})
  for width, heads in _WIDTHS.items()
} | {
  # Text of Phi-2, latents of SDXL's autoencoder; named by pixels of a side.
  f"lina_d48w1536_text_{16 * side}": (
    Lina,
    {
      "width": 1536,
      "heads": 16,
      "queries": side**2 // 4,
      "grid": (side, side),
      "patch_size": 2,
      "text_width": 2560,
    },
  )
  for side in (16, 32, 64)
}
