"""Kinds of layers that relevance is propagated through, as frozen dataclasses.

A list of them says what a network computes, `forward`, and how relevance goes
back, `backward`. They hold the paths of Flax's parameters and never the arrays.
To add a kind, derive from `Layer`. Kinds without parameters are functions of
their input too, so that a `flax.linen.Sequential` can be made of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from interpret import relevance_rules as rules
from models import registry

Parameters = Mapping[str, Any]
Function = Callable[[jax.Array], jax.Array]
# As `jax.lax.conv_general_dilated` takes it.
Padding = str | Sequence[tuple[int, int]]


class Layer:
  """A kind of layer: what all of them have."""

  def forward(
    self, parameters: Parameters, x: jax.Array
  ) -> tuple[jax.Array, Any]:
    """Returns (output, what `backward` needs of this pass)."""
    raise NotImplementedError

  def backward(
    self, parameters: Parameters, kept: Any, relevance: jax.Array
  ) -> jax.Array:
    """Maps relevance of the output to that of the input, float32."""
    raise NotImplementedError


class _Weighted(Layer):
  """Of which `rule` chooses how relevance goes back; see `relevance_rules`."""

  path: str
  rule: rules.Rule

  def product(self, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Linear in `x` and in `weight`."""
    raise NotImplementedError

  def forward(self, parameters, x):
    weight, bias = self._weights(parameters)
    y = self.product(x, weight.astype(x.dtype))
    if bias is not None:
      y += jnp.broadcast_to(bias.astype(y.dtype), y.shape)
    return y, x

  def backward(self, parameters, kept, relevance):
    weight, bias = self._weights(parameters)
    return self.rule(self.product, kept, weight, bias, relevance)

  def _weights(self, parameters):
    found = find(parameters, self.path)
    return found["kernel"], found.get("bias")


@dataclasses.dataclass(frozen=True)
class Dense(_Weighted):
  """A dense layer.

  Attributes:
    path: of "kernel" and "bias" among the parameters, as "head/logits".
    rule: see `relevance_rules`.
    input_axes: last axes of the input that are summed over; those of a
      `DenseGeneral`.
  """

  path: str
  rule: rules.Rule = rules.zero
  input_axes: int = 1

  def product(self, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Maps [batch, ..., inputs], [inputs, outputs] to [batch, ..., outputs]."""
    return jnp.tensordot(x, weight, self.input_axes)


@dataclasses.dataclass(frozen=True)
class Conv(_Weighted):
  """A convolution of images [batch, height, width, channels].

  Attributes:
    path: of "kernel" and "bias" among the parameters.
    rule: see `relevance_rules`.
    strides: of both axes.
    padding: "SAME", "VALID" or pairs of pixels, which are zeros.
    dilation: of the kernel.
    groups: of channels.
  """

  path: str
  rule: rules.Rule = rules.zero
  strides: tuple[int, int] = (1, 1)
  padding: Padding = "SAME"
  dilation: tuple[int, int] = (1, 1)
  groups: int = 1

  def product(self, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Maps images and a kernel [rows, columns, inputs, outputs] to images."""
    return jax.lax.conv_general_dilated(
      x,
      weight,
      self.strides,
      self.padding,
      rhs_dilation=self.dilation,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=self.groups,
    )


class _Plain(Layer):
  """Without parameters, and so a function of its input."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """The output."""
    return self.forward({}, x)[0]


@dataclasses.dataclass(frozen=True)
class Pointwise(_Plain):
  """A function of each number, whose relevance is handed on as it is.

  Attributes:
    function: as `flax.linen.relu`.
  """

  function: Function

  def forward(self, parameters, x):
    return self.function(x), None

  def backward(self, parameters, kept, relevance):
    return relevance


@dataclasses.dataclass(frozen=True)
class Moved(_Plain):
  """Numbers that go elsewhere or nowhere: reshapes, flattening, one token.

  Attributes:
    function: every output of it is one of its inputs.
  """

  function: Function

  def forward(self, parameters, x):
    return self.function(x), x

  def backward(self, parameters, kept, relevance):
    return rules.routed(self.function, kept, relevance)


@dataclasses.dataclass(frozen=True)
class MaxPool(_Plain):
  """The largest of each window, which takes all of its relevance.

  Attributes:
    window: its sides.
    strides: as the window if None.
    padding: "VALID", "SAME" or pairs of pixels, which never win.
  """

  window: tuple[int, int] = (2, 2)
  strides: tuple[int, int] | None = None
  padding: Padding = "VALID"

  def forward(self, parameters, x):
    return self._pool(x), x

  def backward(self, parameters, kept, relevance):
    return rules.routed(self._pool, kept, relevance)

  def _pool(self, x):
    strides = self.strides or self.window
    return nn.max_pool(x, self.window, strides, self.padding)


@dataclasses.dataclass(frozen=True)
class AveragePool(_Plain):
  """The mean of each window, shared out by LRP-0, which is z+ of inputs >= 0.

  Attributes:
    window: its sides; all of the image if None.
    strides: as the window if None.
    padding: "VALID", "SAME" or pairs of pixels, which are zeros.
  """

  window: tuple[int, int] | None = None
  strides: tuple[int, int] | None = None
  padding: Padding = "VALID"

  def forward(self, parameters, x):
    return self._pool(x), x

  def backward(self, parameters, kept, relevance):
    return rules.local(self._pool, kept, relevance)

  def _pool(self, x):
    window = self.window or x.shape[1:3]
    return nn.avg_pool(x, window, self.strides or window, self.padding)


@dataclasses.dataclass(frozen=True)
class Local(Layer):
  """Any function, through which relevance goes by `relevance_rules.local`.

  Attributes:
    function: of (parameters of `path`, x); constants of it are held with
      `jax.lax.stop_gradient`.
    path: of a dictionary of parameters; all of them if empty.
    epsilon: of the rule.
  """

  function: Callable[[Parameters, jax.Array], jax.Array]
  path: str = ""
  epsilon: float = 0.0

  def forward(self, parameters, x):
    return self.function(find(parameters, self.path), x), x

  def backward(self, parameters, kept, relevance):
    function = functools.partial(self.function, find(parameters, self.path))
    return rules.local(function, kept, relevance, epsilon=self.epsilon)


@dataclasses.dataclass(frozen=True)
class LayerNorm(Layer):
  """LayerNorm, whose deviation is a constant for relevance; its mean is not.

  The LN-rule of 2202.01935, AttnLRP's too. The bias keeps its share.

  Attributes:
    path: of "scale" and "bias", either of which may be missing.
    epsilon: of the norm.
    stabilizer: epsilon of the rule.
  """

  path: str
  epsilon: float = 1e-6
  stabilizer: float = 0.0

  def forward(self, parameters, x):
    return self._norm(find(parameters, self.path), x), x

  def backward(self, parameters, kept, relevance):
    function = functools.partial(self._norm, find(parameters, self.path))
    return rules.local(function, kept, relevance, epsilon=self.stabilizer)

  def _norm(self, found, x):
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    y = centred * jax.lax.stop_gradient(jax.lax.rsqrt(variance + self.epsilon))
    if "scale" in found:
      y *= jnp.broadcast_to(found["scale"], y.shape)
    if "bias" in found:
      y += jnp.broadcast_to(found["bias"], y.shape)
    return y


@dataclasses.dataclass(frozen=True)
class Attention(_Plain):
  """Attention of [batch, tokens, 3, heads, dim], queries, keys and values.

  Its output is [batch, tokens, heads, dim]; the projections are `Dense`.

  Attributes:
    rule: `relevance_rules.attention`, AttnLRP's, or
      `relevance_rules.attention_constant_weights`.
    epsilon: of the rule.
  """

  rule: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] = rules.attention
  epsilon: float = 0.0

  def forward(self, parameters, x):
    return jax.nn.dot_product_attention(*_three(x)), x

  def backward(self, parameters, kept, relevance):
    parts = self.rule(*_three(kept), relevance, epsilon=self.epsilon)
    return jnp.stack(parts, axis=2)


@dataclasses.dataclass(frozen=True)
class Residual(Layer):
  """x + branch(x): each side gets its share of the sum.

  Attributes:
    branch: layers.
    epsilon: of the shares.
  """

  branch: tuple[Layer, ...]
  epsilon: float = 0.0

  def forward(self, parameters, x):
    y, kept = forward(self.branch, parameters, x)
    return x + y, (x, y, kept)

  def backward(self, parameters, kept, relevance):
    x, y, within = kept
    direct, through = rules.shared((x, y), relevance, epsilon=self.epsilon)
    return direct + backward(self.branch, parameters, within, through)[0]


def forward(
  layers: Sequence[Layer], parameters: Parameters, x: jax.Array
) -> tuple[jax.Array, list[Any]]:
  """Returns (output, what the layers' `backward` need), of a list of layers."""
  kept = []
  for layer in layers:
    x, of_layer = layer.forward(parameters, x)
    kept.append(of_layer)
  return x, kept


def backward(
  layers: Sequence[Layer],
  parameters: Parameters,
  kept: Sequence[Any],
  relevance: jax.Array,
) -> list[jax.Array]:
  """Returns relevance of the input of each layer, and of the output last."""
  found = [relevance]
  for layer, of_layer in zip(reversed(layers), reversed(kept), strict=True):
    found.append(layer.backward(parameters, of_layer, found[-1]))
  return found[::-1]


def find(parameters: Parameters, path: str) -> Parameters:
  """What is at a path, as "block_0/norm"; all of it for "".

  Raises:
    ValueError: if there is nothing, with what there is.
  """
  found = parameters
  for name in path.split("/") if path else ():
    if name not in found:
      raise registry.unknown(f"part of the path {path!r}", name, found)
    found = found[name]
  return found


def _three(x):
  return (x[:, :, i] for i in range(3))
