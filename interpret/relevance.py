"""Relevance of an input by layer-wise propagation, over a list of layers.

  layers = relevance.of_vit(model)
  logits, relevances = relevance.propagate(layers, variables, images)
  relevances[0]  # [batch, height, width, channels], as the images

The list is explicit (`relevance_layers`): what is not in it is not propagated
through, and each layer names its rule (`relevance_rules`). There is one pass
forward, of which the activations are kept, and one back. Jit it with the list
held: `jax.jit(functools.partial(relevance.propagate, layers))`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from interpret import relevance_layers as kinds
from interpret import relevance_rules as rules
from models import feed_forward, patch_mixers, registry

# What the notebooks of "Beyond saliency" (1712.08268) do; it is not z+.
REPOSITORY_RULES: dict[type[kinds.Layer], rules.Rule] = {
  kinds.Dense: rules.z_plus,
  kinds.Conv: rules.zero,
}
POINTWISE = (nn.relu, nn.gelu, nn.silu, nn.tanh, nn.leaky_relu, nn.elu)


def propagate(
  layers: Sequence[kinds.Layer],
  variables: Mapping[str, Any],
  x: jax.Array,
  target: int | jax.Array | None = None,
) -> tuple[jax.Array, list[jax.Array]]:
  """Propagates relevance from the output of a list of layers to their input.

  Args:
    layers: from input to output, see `relevance_layers`.
    variables: as `model.init` gives them, or their "params".
    x: input of the first layer, [batch, ...].
    target: what the relevance begins with: the logit (no softmax) of a class,
      one or [batch] of them, others 0; of the class that wins if None; or the
      relevance itself, floating point and like the output, as logits of one
      class less those of another.

  Returns:
    (output, relevances): what the layers give for `x`; and the relevance of the
    input of each layer, float32, with that of the output last. Their sums are
    equal if all rules conserve.

  Raises:
    ValueError: if there is no such class or parameter.
  """
  parameters = variables.get("params", variables)
  output, kept = kinds.forward(layers, parameters, x)
  start = _start(output, target)
  return output, kinds.backward(layers, parameters, kept, start)


def sums(relevances: Sequence[jax.Array]) -> jax.Array:
  """Sums of relevance at each depth: float32 [depths, batch].

  A step from one depth to the one before it is what the rule of the layer
  between them, or its bias, has kept.
  """
  return jnp.stack([r.reshape(len(r), -1).sum(1) for r in relevances])


def with_rules(
  layers: Sequence[kinds.Layer],
  by_kind: Mapping[type[kinds.Layer], Any],
  first: rules.Rule | None = None,
) -> tuple[kinds.Layer, ...]:
  """Returns the layers with other rules, also those within residual branches.

  Args:
    layers: see `propagate`.
    by_kind: the rule of each kind that has one, as {Conv: rules.zero}; other
      kinds stay as they are.
    first: of the first layer, if it shall have its own: pixels may be negative.

  Raises:
    ValueError: for a kind, or a first layer, that has no rule to choose.
  """
  for kind in by_kind:
    _check_rule(kind)
  changed = [_with_rule(layer, by_kind) for layer in layers]
  if first is not None:
    _check_rule(type(changed[0]))
    changed[0] = dataclasses.replace(changed[0], rule=first)
  return tuple(changed)


def of_sequential(model: nn.Sequential) -> tuple[kinds.Layer, ...]:
  """The list of a `flax.linen.Sequential`, all rules LRP-0.

  Args:
    model: of `nn.Conv` of images, `nn.Dense`, functions in POINTWISE, and kinds
      of `relevance_layers` that have no parameters, which are functions:
      `MaxPool((3, 3), (2, 2))`, `Moved(lambda x: x.reshape(len(x), -1))`.

  Raises:
    ValueError: for a layer that is none of these.
  """
  return tuple(
    _of_module(f"layers_{i}", layer) for i, layer in enumerate(model.layers)
  )


def of_vit(
  model: patch_mixers.PatchMixer, attention: Any = rules.attention
) -> tuple[kinds.Layer, ...]:
  """The list of a ViT of `models.patch_mixers`, dense layers by LRP-0.

  Positions and the class token are constants that keep their share, as biases.

  Args:
    model: with mixer="attention" and classes.
    attention: the rule of attention.

  Raises:
    ValueError: for other models.
  """
  if model.mixer != "attention" or not model.num_classes:
    raise ValueError(
      f"model has mixer={model.mixer!r} and num_classes={model.num_classes}; "
      "it must be a classifier with mixer='attention'"
    )
  patch = (model.patch_size,) * 2
  layers = [
    kinds.Conv("embed/conv", strides=patch, padding="VALID"),
    kinds.Local(functools.partial(_embed, model), "embed"),
  ]
  for i in range(model.depth):
    layers += _block(model, f"block_{i}", attention)
  if model.last_norm:
    layers.append(kinds.LayerNorm("final_norm", model.epsilon))
  last = kinds.Moved(lambda x: x[:, 0])
  if not model.class_token:
    last = kinds.Local(lambda _, x: x.mean(1))
  return (*layers, last, kinds.Dense("head/logits"))


def _block(model, path, attention):
  second = "norm" if model.shared_norm else "ffn_norm"
  mixer = (
    kinds.LayerNorm(f"{path}/norm", model.epsilon),
    kinds.Dense(f"{path}/mixer/qkv"),
    kinds.Attention(attention),
    kinds.Dense(f"{path}/mixer/out", input_axes=2),
  )
  feed = (
    kinds.LayerNorm(f"{path}/{second}", model.epsilon),
    kinds.Dense(f"{path}/ffn/expand"),
    kinds.Pointwise(feed_forward.exact_gelu),
    kinds.Dense(f"{path}/ffn/shrink"),
  )
  return [kinds.Residual(mixer), kinds.Residual(feed)]


def _embed(model, parameters, x):
  """Maps patches [batch, rows, columns, width] to tokens with positions."""
  x = x.reshape(len(x), -1, model.width)
  if model.class_token:
    token = jnp.broadcast_to(parameters["class_token"], x[:, :1].shape)
    x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
  if model.position == "learned":
    table = parameters["position"].astype(x.dtype)
    if len(table) != x.shape[1]:
      raise ValueError(
        f"x gives {x.shape[1]} tokens, for which there are {len(table)} "
        f"positions; it must be of image_size={model.image_size}"
      )
    x += jnp.broadcast_to(table, x.shape)
  return x


def _start(output, target):
  if target is None:
    target = output.argmax(-1)
  target = target if isinstance(target, jax.Array) else np.asarray(target)
  if jnp.issubdtype(target.dtype, jnp.floating):
    if target.shape != output.shape:
      raise ValueError(
        f"target has shape {target.shape}; relevance to begin with must be "
        f"like the output, {output.shape}"
      )
    return jnp.asarray(target, jnp.float32)
  classes = output.shape[-1]
  if isinstance(target, np.ndarray) and not (
    (target >= 0).all() and (target < classes).all()
  ):
    raise ValueError(
      f"target is {target.tolist()}; classes are 0 to {classes - 1}"
    )
  target = jnp.broadcast_to(target, output.shape[:-1])
  chosen = jax.nn.one_hot(target, classes, dtype=jnp.float32)
  return chosen * output.astype(jnp.float32)


def _with_rule(layer, by_kind):
  if isinstance(layer, kinds.Residual):
    branch = tuple(_with_rule(inner, by_kind) for inner in layer.branch)
    return dataclasses.replace(layer, branch=branch)
  if type(layer) in by_kind:
    return dataclasses.replace(layer, rule=by_kind[type(layer)])
  return layer


def _check_rule(kind):
  if "rule" not in getattr(kind, "__dataclass_fields__", ()):
    raise ValueError(
      f"{kind.__name__} has no rule to choose; Conv, Dense and Attention have"
    )


def _of_module(path, layer):
  if isinstance(layer, kinds.Layer):
    return layer
  if isinstance(layer, nn.Dense):
    return kinds.Dense(path)
  if isinstance(layer, nn.Conv):
    return _of_conv(path, layer)
  if layer in POINTWISE:
    return kinds.Pointwise(layer)
  known = ["Conv", "Dense", *(f.__name__ for f in POINTWISE), "MaxPool"]
  name = getattr(layer, "__name__", type(layer).__name__)
  raise registry.unknown(f"kind of layer at {path}", name, known)


def _of_conv(path, layer):
  if len(layer.kernel_size) != 2 or _pair(layer.input_dilation) != (1, 1):
    raise ValueError(
      f"{path} has kernel_size={layer.kernel_size} and input_dilation="
      f"{layer.input_dilation}; convolutions must be of images, undilated"
    )
  return kinds.Conv(
    path,
    strides=_pair(layer.strides),
    padding=_padding(path, layer.padding),
    dilation=_pair(layer.kernel_dilation),
    groups=layer.feature_group_count,
  )


def _padding(path, padding):
  if padding in ("SAME", "VALID"):
    return padding
  if isinstance(padding, str):
    raise ValueError(
      f"{path} has padding={padding!r}; it must be 'SAME', 'VALID' or numbers "
      "of pixels"
    )
  return tuple((p, p) if isinstance(p, int) else p for p in _pair(padding))


def _pair(value):
  """Of one number for both axes, or two; Flax has None for 1."""
  value = 1 if value is None else value
  return (value, value) if isinstance(value, int) else tuple(value)
