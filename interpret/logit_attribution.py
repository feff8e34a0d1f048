"""Direct logit attribution: which part of a model wrote a logit.

The residual stream is a sum of the embeddings and of what every head and every
feed-forward layer wrote, and with the final norm's statistic as it was the
logit is linear in it ("A Mathematical Framework for Transformer Circuits",
Elhage et al. 2021). So parts and biases add up to the logit, exactly but for
rounding. It counts what goes straight to the logits: what a head does through
later layers is theirs. Weights are used as they are, nothing is folded or
centred.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import interpret
from interpret import frozen_norms, model_kinds
from models import transformer


def attribute(
  model: nn.Module,
  variables: Mapping[str, Any],
  inputs: Any,
  targets: jax.Array,
  against: jax.Array | None = None,
  *,
  heads: bool = True,
  **options: Any,
) -> dict[str, jax.Array]:
  """Shares logits out among the parts of a language model.

  Args:
    model: a `models.transformer.Transformer`, or one that inherits from it,
      whose final norm is an RMS or layer norm.
    variables: its variables.
    inputs: as `interpret.run` has them.
    targets: integers [batch, n], whose logits are meant, at a row's last n
      positions; [batch, 1] for the last one.
    against: of the same shape: logit(targets) - logit(against) is shared out
      instead; None for the logits alone.
    heads: whether attention is shared out among its heads.
    **options: of `model.apply`, as `positions=`.

  Returns:
    float32 arrays by name: "embedded_state", "layer_i/mlp_output",
    "final_norm/bias" and "head/bias" [batch, n]; of a layer's attention either
    "layer_i/mixer_output" [batch, n] or "layer_i/mixer/head_outputs" [batch, n,
    heads] with "layer_i/mixer/bias" [batch, n], the biases of its output and of
    a norm after it. `total` adds them up: to the logits, before a soft cap if
    the model has one.

  Raises:
    ValueError: if targets have another shape, or the logits of the model are
      not linear in its parts; it names the field.
  """
  _check_model(model, heads)
  targets = jnp.asarray(targets)
  if targets.ndim != 2:
    raise ValueError(
      f"targets has shape {targets.shape}; it must be [batch, n] for a row's "
      "last n positions"
    )
  if against is not None and jnp.shape(against) != targets.shape:
    raise ValueError(
      f"against has shape {jnp.shape(against)}; it must have that of targets, "
      f"{targets.shape}"
    )
  parts = ["mixer/head_outputs"] if heads else ["mixer_output"]
  parts += [] if model.mlp == "none" else ["mlp_output"]
  layers = [f"layer_{i}" for i in range(model.depth)]
  names = [f"{layer}/{part}" for layer in layers for part in parts]
  last = f"{layers[-1]}/hidden_state"
  read = ["embedded_state", *names, last]
  _, values = interpret.run(model, variables, inputs, read=read, **options)
  n = targets.shape[1]
  if values[last].shape[1] < n:
    raise ValueError(
      f"targets has shape {targets.shape}, but rows have "
      f"{values[last].shape[1]} positions"
    )
  values = {name: value[:, -n:] for name, value in values.items()}
  params = _plain(variables["params"])
  direction, bias = _direction(params, targets, against)
  norm = frozen_norms.freeze(model, params["final_norm"], values.pop(last))
  along = norm.pulled(direction)
  found = {"final_norm/bias": norm.constant(direction), "head/bias": bias}
  for name, value in values.items():
    if name.endswith("/head_outputs"):
      layer = name.split("/")[0]
      found |= _of_heads(model, params[layer], layer, value, along)
    else:
      found[name] = _dot(value, along)
  return found


def total(parts: Mapping[str, jax.Array]) -> jax.Array:
  """The sum of all parts that `attribute` gives, [batch, n]."""
  return sum(
    part.sum(-1) if name.endswith("/head_outputs") else part
    for name, part in parts.items()
  )


def _of_heads(model, params, layer, outputs, along) -> dict[str, jax.Array]:
  """What each head and the bias of a layer's attention give along a direction.

  Args:
    outputs: [batch, n, heads, dim].
    along: [batch, n, width].
  """
  out = params["mixer"]["out"]
  kernel = out["kernel"].astype(jnp.float32)
  written = jnp.einsum("bnhd,hdw->bnhw", outputs.astype(jnp.float32), kernel)
  width = written.shape[-1]
  bias = out.get("bias", jnp.zeros(width)).astype(jnp.float32)[None, None]
  constant = 0.0
  if model.norm_placement == "sandwich":
    # What the branch gives is normalised before it is added.
    norm = frozen_norms.freeze(
      model, params["mixer_post_norm"], written.sum(2) + bias
    )
    constant = norm.constant(along)
    along = norm.pulled(along)
  return {
    f"{layer}/mixer/head_outputs": jnp.einsum("bnhw,bnw->bnh", written, along),
    f"{layer}/mixer/bias": _dot(bias, along) + constant,
  }


def _direction(params, targets, against) -> tuple[jax.Array, jax.Array]:
  """What a logit is of the normed state, [batch, n, width], and its bias."""
  logits = params.get("head", {}).get("logits", {})
  if "kernel" in logits:
    table = logits["kernel"].T
  else:
    table = params["embed"]["embedding"]
  biases = logits.get("bias", jnp.zeros(len(table)))

  def of(tokens):
    return table[tokens].astype(jnp.float32), biases[tokens].astype(jnp.float32)

  direction, bias = of(targets)
  if against is None:
    return direction, bias
  other, other_bias = of(jnp.asarray(against))
  return direction - other, bias - other_bias


def _plain(params: Mapping[str, Any]) -> Mapping[str, Any]:
  return transformer.unstack_layers(params) if "layers" in params else params


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.sum(x.astype(jnp.float32) * y, axis=-1)


def _check_model(model: nn.Module, heads: bool) -> None:
  """Raises ValueError if logits are no sum of parts."""
  model_kinds.check_language_model(model)
  for field, fits in (
    ("residual", ("sum",)),
    ("norm_placement", ("pre", "sandwich")),
    ("residual_clip", (0,)),
    ("norm", frozen_norms.LINEAR),
    ("head_transform", (False,)),
    ("remember", ("none",)),
  ):
    value = getattr(model, field, fits[0])
    if value not in fits:
      raise ValueError(
        f"{field} is {value!r}: the logits are no sum of what layers wrote "
        f"then; it must be {' or '.join(map(repr, fits))}"
      )
  if not heads:
    return
  if model.output_gate != "none" and model.gate_position == "projection":
    raise ValueError(
      "gate_position is 'projection', where heads are summed already; take "
      "heads=False"
    )
