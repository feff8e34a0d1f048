"""The seam through which attention enters a model: token mixers, by name.

A token mixer is a Flax module that maps an image [batch, height, width,
channels] to an image of the same shape. A backbone names the mixers it wants
and offers what it knows (head size, window size, dtypes); each mixer takes the
options it has fields for. To try another mechanism, add it to TOKEN_MIXERS.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from attention import masks, scales, scores
from attention.mask_base import Mask
from models import bias_factors, layers, registry, taps
from models.halo_mixer import HaloAttention
from models.head_projections import ToHeads, from_heads

Dtype = layers.Dtype

SCALES = ("constant", "entropy")


class WindowAttention(nn.Module):
  """Multi-head attention with relative position bias; subclasses say where.

  Attributes:
    head_dim: channels of a head; the number of heads follows from the width.
    window_size: side of a window or grid in tokens.
    bias_table_window: side of the window that the stored table of biases is
      for; it is resized at run time. `window_size` if None.
    bias_rank: rank of two factors [tokens, heads, rank] whose product is the
      bias, in the place of the table; 0 for the table. `bias_factors` makes
      them of a trained table; trained themselves they are another model, whose
      biases do not depend on offsets.
    scale_by: "constant", or "entropy" for windows of another size than in
      training, which was `bias_table_window`; see `attention.scales`.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    kernel_init: initializer of the kernels and of the table.
    dtype: dtype of the computation; softmax is float32.
    param_dtype: dtype of the parameters.
  """

  head_dim: int = 32
  window_size: int = 7
  bias_table_window: int | None = None
  bias_rank: int = 0
  scale_by: str = "constant"
  implementation: str = "auto"
  kernel_init: layers.Initializer = nn.initializers.normal(0.02)
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    if channels % self.head_dim:
      raise ValueError(
        f"head_dim is {self.head_dim}, which does not divide the width "
        f"{channels} of the stage"
      )
    heads = channels // self.head_dim
    options = {
      "kernel_init": self.kernel_init,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    # Three times [batch, height, width, heads, head_dim].
    heads_of = ToHeads(3, heads, self.head_dim, name="qkv", **options)(x)
    names = ("queries", "keys", "values")
    q, k, v = map(functools.partial(taps.tap, self), names, heads_of)
    if self.bias_rank:
      out = self._attend_by_factors(q, k, v, self._factors(heads))
    else:
      out = self._attend(q, k, v, self._bias(heads))
    return nn.DenseGeneral(
      channels, axis=(-2, -1), dot_general=from_heads, name="out", **options
    )(out)

  def _bias(self, heads: int) -> jax.Array:
    side = 2 * (self.bias_table_window or self.window_size) - 1
    table = self.param(
      "relative_bias_table",
      self.kernel_init,
      (heads, side, side),
      self.param_dtype,
    )
    table = attention.resize_relative_table(table, self.window_size)
    return attention.relative_position_bias(table)

  def _factors(self, heads: int) -> scores.ScoreMod:
    tokens = self.window_size**2
    if not 0 < self.bias_rank <= tokens:
      raise ValueError(
        f"bias_rank is {self.bias_rank}; windows of {tokens} tokens have "
        f"factors of rank 1 to {tokens}, and 0 is for the table"
      )
    shape = (tokens, heads, self.bias_rank)
    return scores.factored_bias(
      *(
        self.param(name, self.kernel_init, shape, self.param_dtype)
        for name in bias_factors.FACTORS
      )
    )

  def _scale(self) -> float:
    if self.scale_by not in SCALES:
      raise registry.unknown("scale_by", self.scale_by, SCALES)
    if self.scale_by == "constant":
      return self.head_dim**-0.5
    trained = self.bias_table_window or self.window_size
    return scales.entropy(self.window_size**2, trained**2, self.head_dim)

  def _attend(self, q, k, v, bias):
    options = {"bias": bias, "scale": self._scale()}

    def attend():
      return self.windowed_attention(
        q,
        k,
        v,
        window_size=self.window_size,
        implementation=self.implementation,
        **options,
      )

    halves = self._halves(q, k, v, options)
    return taps.with_open_map(self, attend, *halves, scores=True)

  def _attend_by_factors(self, q, k, v, factors):
    """In windows that are cut before, as its kernel takes factors."""
    return self._attend_in_windows(q, k, v, {"score_mods": factors})

  def _attend_in_windows(self, q, k, v, options):
    """By `dot_product_attention` with these options."""
    options = {"scale": self._scale(), **options}

    def attend():
      windows = [self.partition(x, self.window_size) for x in (q, k, v)]
      out = attention.dot_product_attention(
        *windows, implementation=self.implementation, **options
      )
      return self.unpartition(out, *v.shape[1:3])

    halves = self._halves(q, k, v, options)
    return taps.with_open_map(self, attend, *halves, scores=True)

  def _halves(self, q, k, v, options):
    """The map by itself, and what it makes of the values."""

    def weigh(edit_scores=None):
      windows = (self.partition(x, self.window_size) for x in (q, k))
      # [batch, windows, heads, tokens, tokens]
      return attention.attention_weights(
        *windows, edit_scores=edit_scores, **options
      )

    def apply(weights):
      windows = self.partition(v, self.window_size)
      out = attention.apply_attention_weights(weights, windows)
      return self.unpartition(out, *v.shape[1:3])

    return weigh, apply


class BlockAttention(WindowAttention):
  """Attention within windows of neighbouring tokens."""

  windowed_attention = staticmethod(attention.block_attention)
  partition = staticmethod(attention.block_partition)
  unpartition = staticmethod(attention.block_unpartition)


class ShiftedAttention(BlockAttention):
  """Attention within windows that lie between others (Swin, 2103.14030).

  The image is rolled, so that windows at its end hold tokens of both ends;
  those that were no neighbours do not see each other. Maps of attention are of
  the windows of the rolled image.

  Attributes:
    shift: by how many tokens windows lie lower and to the right; half a window
      if None.
  """

  shift: int | None = None

  def __call__(self, x: jax.Array) -> jax.Array:
    shift = self._shift
    if not 0 <= shift < self.window_size:
      raise ValueError(
        f"shift is {shift}; it must be at least 0 and less than window_size "
        f"{self.window_size}"
      )
    out = super().__call__(jnp.roll(x, (-shift, -shift), (1, 2)))
    return jnp.roll(out, (shift, shift), (1, 2))

  @property
  def _shift(self) -> int:
    return self.window_size // 2 if self.shift is None else self.shift

  def _attend(self, q, k, v, bias):
    if not self._shift:
      return super()._attend(q, k, v, bias)
    options = {"bias": bias, "mask": self._neighbours(*q.shape[1:3])}
    return self._attend_in_windows(q, k, v, options)

  def _attend_by_factors(self, q, k, v, factors):
    if not self._shift:
      return super()._attend_by_factors(q, k, v, factors)
    options = {"score_mods": factors, "mask": self._neighbours(*q.shape[1:3])}
    return self._attend_in_windows(q, k, v, options)

  def _neighbours(self, height: int, width: int) -> Mask:
    """Which tokens of each window of the rolled image are of one end of it."""
    rows, columns = height // self.window_size, width // self.window_size
    return masks.function(
      _Neighbours(self.window_size, self._shift, rows, columns)
    )


@dataclasses.dataclass(frozen=True)
class _Neighbours:
  """Whether the tokens of a shifted window are of the same end of the image.

  Of windows in row-major order; a function of indices, for an array of all
  pairs of all windows would be larger than the images.
  """

  side: int
  shift: int
  rows: int
  columns: int

  def __call__(self, window, head, query, key):
    del head
    row, column = divmod(window % (self.rows * self.columns), self.columns)
    first = self.side - self.shift  # Of the tokens that come from the start.
    other_row = (query // self.side < first) != (key // self.side < first)
    other_column = (query % self.side < first) != (key % self.side < first)
    return ~(
      ((row == self.rows - 1) & other_row)
      | ((column == self.columns - 1) & other_column)
    )


class GridAttention(WindowAttention):
  """Attention within grids of tokens spread over the image."""

  windowed_attention = staticmethod(attention.grid_attention)
  partition = staticmethod(attention.grid_partition)
  unpartition = staticmethod(attention.grid_unpartition)


TOKEN_MIXERS: dict[str, type[nn.Module]] = {
  "block_attention": BlockAttention,
  "grid_attention": GridAttention,
  "halo_attention": HaloAttention,
  "shifted_attention": ShiftedAttention,
}


def create(
  mixer: str, offered: Mapping[str, Any], name: str | None = None
) -> nn.Module:
  """Returns the token mixer `mixer` with those options that it has fields for.

  Args:
    mixer: a key of TOKEN_MIXERS.
    offered: options that the backbone knows.
    name: name of the module among its siblings.

  Raises:
    ValueError: if there is no such mixer.
  """
  if mixer not in TOKEN_MIXERS:
    raise registry.unknown("token mixer", mixer, TOKEN_MIXERS)
  cls = TOKEN_MIXERS[mixer]
  fields = {field.name for field in dataclasses.fields(cls)}
  taken = {key: value for key, value in offered.items() if key in fields}
  return cls(name=name, **taken)
