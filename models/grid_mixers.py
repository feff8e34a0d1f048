"""What mixes the tokens of a grid in a diffusion transformer, by name.

A grid mixer is a Flax module with projections,

    mixer(x, layout) -> x

of `x` [batch, tokens, width] and their `Layout`. One that takes part in joint
attention has two arguments more, and returns both:

    mixer(x, layout, text=text, lengths=lengths) -> (x, text)

with condition tokens `text` [batch, tokens, width] and how many keys are real,
integers [batch] or None. A model offers what it knows (heads, rotary positions,
dtypes), and each mixer takes what it has fields for. To try another, add it to
GRID_MIXERS.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from models import attends, layers, lina_layers, positions, registry
from models.attends import Layout
from models.linfusion import LinFusion

_XAVIER = nn.initializers.xavier_uniform()
# Of queries, keys and values as one matrix, which is what others initialise.
_INTO_HEADS = nn.initializers.variance_scaling(
  0.5, "fan_avg", "uniform", in_axis=0, out_axis=(1, 2)
)


class _Attention(nn.Module):
  """What self- and cross-attention share.

  Attributes:
    heads: number of heads.
    attend: a key of `attends.ATTENDS`.
    attend_options: its options.
    implementation: see `attention.kernels.dispatch`.
    out_init: initializer of what writes to the residual stream.
    dtype: dtype of the computation; softmax is float32.
    param_dtype: dtype of the parameters.
  """

  heads: int
  attend: str = "full"
  attend_options: Mapping[str, Any] = FrozenDict()
  implementation: str = "auto"
  out_init: layers.Initializer = _XAVIER
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  def _to_heads(self, name: str, x: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] to [batch, tokens, heads, dim]."""
    return lina_layers.HeadsDense(
      self.heads,
      self.dtype,
      self.param_dtype,
      _INTO_HEADS,
      nn.initializers.zeros,
      name=name,
    )(x)

  def _from_heads(self, name: str, x: jax.Array) -> jax.Array:
    """Maps [batch, tokens, heads, dim] to [batch, tokens, width]."""
    x = x.reshape(*x.shape[:2], -1)
    return layers.Dense(
      x.shape[-1],
      kernel_init=self.out_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=name,
    )(x)

  def _attended(self, q, k, v, layout, lengths):
    options = dict(self.attend_options)
    if lengths is not None:
      options["lengths"] = lengths
    return attends.find(self.attend)(self, q, k, v, layout, **options)


class GridAttention(_Attention):
  """Attention of the tokens of a grid to each other, and to a text if joint.

  In joint attention (MMDiT, arXiv 2403.03206) condition tokens have projections
  of their own, "text_query" and so on, and all tokens see all.

  Attributes:
    rotary_base: see `positions.rotate_grid`; 0 for no rotary positions.
    text_out: whether condition tokens are projected back; those of the last
      layer, which nobody reads, are not.
  """

  rotary_base: float = 0.0
  text_out: bool = True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    layout: Layout,
    text: jax.Array | None = None,
    lengths: jax.Array | None = None,
  ) -> Any:
    """See `models.grid_mixers`; the text is None if it is not projected."""
    names = "query", "key", "value"
    q, k, v = (self._to_heads(name, x) for name in names)
    if text is not None:
      own = (self._to_heads(f"text_{name}", text) for name in names)
      q, k, v = (
        jnp.concatenate(parts, axis=1)
        for parts in zip((q, k, v), own, strict=True)
      )
    if self.rotary_base:
      q, k = (
        positions.rotate_grid(part, layout.grid, base=self.rotary_base)
        for part in (q, k)
      )
    out = self._attended(q, k, v, layout, lengths)
    x = self._from_heads("out", out[:, : layout.places])
    if text is None:
      return x
    text = None
    if self.text_out:
      text = self._from_heads("text_out", out[:, layout.places :])
    return x, text


class CrossAttention(_Attention):
  """Attention of the tokens of a grid to condition tokens."""

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    layout: Layout,
    text: jax.Array,
    lengths: jax.Array | None = None,
  ) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it; see the module."""
    q = self._to_heads("query", x)
    k, v = (self._to_heads(name, text) for name in ("key", "value"))
    out = self._attended(q, k, v, layout, lengths)
    return self._from_heads("out", out)


GRID_MIXERS: dict[str, type[nn.Module]] = {
  "attention": GridAttention,
  "linfusion": LinFusion,
}


def check(
  mixer: str, options: Mapping[str, Any], *, joint: bool = False
) -> None:
  """Raises ValueError for a mixer or an option that is not there.

  Args:
    mixer: a key of GRID_MIXERS.
    options: fields of it.
    joint: whether condition tokens shall take part.
  """
  if mixer not in GRID_MIXERS:
    raise registry.unknown("mixer", mixer, GRID_MIXERS)
  cls = GRID_MIXERS[mixer]
  for option in options:
    if option not in _fields(cls):
      raise registry.unknown(f"option of mixer={mixer!r}", option, _fields(cls))
  if joint and not _takes_text(cls):
    able = [name for name, other in GRID_MIXERS.items() if _takes_text(other)]
    raise ValueError(
      f"mixer is {mixer!r}, which takes no condition tokens, and conditioning "
      f"is 'joint'; those that do are {able}"
    )


def maker(
  mixer: str, options: Mapping[str, Any], offered: Mapping[str, Any]
) -> functools.partial:
  """Returns what makes a mixer, given a name.

  Args:
    mixer: a key of GRID_MIXERS.
    options: fields of it.
    offered: what the model knows; the mixer takes what it has fields for.
  """
  cls = GRID_MIXERS[mixer]
  taken = {k: v for k, v in offered.items() if k in _fields(cls)}
  return functools.partial(cls, **{**taken, **options})


def _fields(cls: type[nn.Module]) -> set[str]:
  names = {field.name for field in dataclasses.fields(cls)}
  return names - {"parent", "name"}


def _takes_text(cls: type[nn.Module]) -> bool:
  return "text" in inspect.signature(cls.__call__).parameters
