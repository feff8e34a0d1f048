"""What predicts at each step: a model with its variables and condition."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention import checks
from models import decoding
from models.attends import STATE

# (x [batch, ...], time (a scalar), state) -> (prediction like x, state). What
# is a pytree goes through `jax.jit` as such, with its arrays as arguments.
Denoise = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("variables", "condition", "guidance"),
  meta_fields=("model", "guided_channels"),
)
@dataclasses.dataclass(frozen=True)
class Denoiser:
  """A model that predicts, with classifier-free guidance; a `Denoise`.

  Both halves of the guidance are one batch, those with a condition first, so
  that a state of the model holds both.

  Attributes:
    model: hashable; called as `models.diffusion_transformer` says.
    variables: of the model.
    condition: what the model is given, by name: "label", "text" and
      "text_length", with rows for each of the batch, or of both halves.
    guidance: w of u + w (c - u), of predictions with the condition and without;
      None for c alone.
    guided_channels: to how many channels, the first, it applies; the others are
      c's. All if None.
  """

  model: nn.Module
  variables: Mapping[str, Any]
  condition: Mapping[str, jax.Array]
  guidance: jax.Array | None = None
  guided_channels: int | None = None

  def __call__(self, x, time, state):
    """Predicts of x [batch, ..., channels] at a time; see `Denoise`."""
    given, none, state = self.halves(x, time, state)
    return self.combine(given, none), state

  def halves(self, x, time, state):
    """Returns predictions with the condition and without, and the state.

    Without guidance the second is None.
    """
    channels = x.shape[-1]
    if self.guidance is None:
      output, state = self.apply(x, time, state)
      return output[..., :channels], None, state
    output, state = self.apply(jnp.concatenate([x, x]), time, state)
    given, none = jnp.split(output[..., :channels], 2)
    return given, none, state

  def combine(self, given, none):
    """The guided prediction, of `halves`."""
    if none is None:
      return given
    guided = none + self.guidance * (given - none)
    if self.guided_channels is None:
      return guided
    here = np.arange(given.shape[-1]) < self.guided_channels
    here = here.reshape((1,) * (given.ndim - 1) + (-1,))
    return jnp.where(here, guided, given)

  def apply(self, x, time, state):
    """The model's own output for all rows of the condition, and its state."""
    variables = dict(self.variables)
    if state:
      variables[STATE] = state
    time = jnp.full(x.shape[:1], jnp.maximum(time, 0.0), jnp.float32)
    output, moved = self.model.apply(
      variables, x, time, **self.condition, train=False, mutable=[STATE]
    )
    return output, moved.get(STATE, {})


def create_denoiser(
  model: nn.Module,
  variables: Mapping[str, Any],
  *,
  label: jax.Array | None = None,
  text: jax.Array | None = None,
  text_length: jax.Array | None = None,
  guidance: float = 1.0,
) -> Denoiser:
  """Makes a denoiser of a model.

  Args:
    model: as `models.diffusion_transformer` has them; a label of its
      `num_classes` is none, and guidance is for its `guided_channels`.
    variables: of the model.
    label: int32 [batch] or [batch, label_tokens].
    text: [batch, tokens, text_width].
    text_length: int32 [batch], all tokens if None.
    guidance: w, see `Denoiser`; at 1 the half without a condition is left out.

  Raises:
    ValueError: if there is guidance and no condition, or it is not finite.
  """
  checks.number("guidance", guidance)
  condition = {"label": label, "text": text, "text_length": text_length}
  condition = {
    name: jnp.asarray(value)
    for name, value in condition.items()
    if value is not None
  }
  guided = guidance != 1
  if guided:
    condition = with_none(condition, getattr(model, "num_classes", 0))
  return Denoiser(
    decoding.hashable(model),
    variables,
    condition,
    jnp.float32(guidance) if guided else None,
    # 0 stands for all.
    getattr(model, "guided_channels", None) or None,
  )


def with_none(
  condition: Mapping[str, jax.Array], no_label: int
) -> dict[str, jax.Array]:
  """Returns rows with the condition, then as many with none.

  Args:
    condition: as of `Denoiser`.
    no_label: the label that is none.

  Raises:
    ValueError: if there is no condition.
  """
  if not condition:
    raise ValueError(
      "guidance needs a condition to go away from: give label or text, or "
      "guidance=1."
    )
  doubled = {}
  if "label" in condition:
    label = condition["label"]
    none = jnp.full_like(label, no_label)
    doubled["label"] = jnp.concatenate([label, none])
  if "text" in condition:
    text = condition["text"]
    length = condition.get(
      "text_length", jnp.full(len(text), text.shape[1], jnp.int32)
    )
    doubled["text"] = jnp.concatenate([text, text])
    doubled["text_length"] = jnp.concatenate([length, jnp.zeros_like(length)])
  return doubled
