"""Finishes: what happens to the weighted values of each head."""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks

# Of gates. A sigmoid that does not close, from 0.5 to 1, is a control: it has
# the non-linearity of a gate and not the sparsity.
ACTIVATIONS = {
  "sigmoid": jax.nn.sigmoid,
  "half_sigmoid": lambda x: 0.5 + 0.5 * jax.nn.sigmoid(x),
  "silu": jax.nn.silu,
  "identity": lambda x: x,
}
OPERATIONS = ("multiply", "add")


class Finish(abc.ABC):
  """A change of the output; a frozen dataclass registered as a pytree."""

  @abc.abstractmethod
  def apply(self, out: Array, value_sum: Callable[[], Array]) -> Array:
    """Returns the new output.

    Args:
      out: [batch, q_len, heads, v_dim] in float32.
      value_sum: gives the sum of the values that each query sees, like `out`.
    """


def gate(
  logits: Float[Array, "batch q_len heads *v_dim"],
  *,
  activation: str = "sigmoid",
  operation: str = "multiply",
) -> Finish:
  """Multiplies by sigmoid(logits): "Gated Attention" (arXiv 2505.06708), G1.

  Or with the paper's other gates: what is not the sigmoid, and what is added.
  All are computed in float32.

  Args:
    logits: [batch, q_len, heads] for a gate a head, or [batch, q_len, heads,
      v_dim] for one an element.
    activation: a key of ACTIVATIONS.
    operation: "multiply" or "add".

  Raises:
    ValueError: if there is no such activation or operation.
  """
  checks.floating("logits", logits)
  checks.choice("activation", activation, ACTIVATIONS)
  checks.choice("operation", operation, OPERATIONS)
  return Gate(logits, activation, operation)


def value_sum(weight: Float[Array, "batch q_len heads"]) -> Finish:
  """Adds weight * (sum of the values that the query sees).

  Args:
    weight: [batch, q_len, heads].
  """
  checks.floating("weight", weight)
  return ValueSum(weight)


def _static(default: str):
  """A field that is part of a finish's structure and no array."""
  return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gate(Finish):
  """activation(logits) * out, or activation(logits) + out."""

  logits: Array
  activation: str = _static("sigmoid")
  operation: str = _static("multiply")

  def apply(self, out, value_sum):
    logits = self.logits.astype(jnp.float32)
    if logits.ndim == out.ndim - 1:
      logits = logits[..., None]
    if logits.ndim != out.ndim or any(
      have not in (1, want)
      for have, want in zip(logits.shape, out.shape, strict=True)
    ):
      raise ValueError(
        f"logits of the gate have shape {self.logits.shape}; an output of "
        f"shape {out.shape} needs {out.shape[:3]} or {out.shape}"
      )
    value = ACTIVATIONS[self.activation](logits)
    return out * value if self.operation == "multiply" else out + value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ValueSum(Finish):
  """out + weight * sum of visible values."""

  weight: Array

  def apply(self, out, value_sum):
    if self.weight.shape != out.shape[:3]:
      raise ValueError(
        f"weight of the value sum has shape {self.weight.shape}; it must be "
        f"[batch, q_len, heads] = {out.shape[:3]}"
      )
    return out + self.weight.astype(jnp.float32)[..., None] * value_sum()
