"""Finishes: what happens to the weighted values of each head."""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks


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
) -> Finish:
  """Multiplies by sigmoid(logits): "Gated Attention" (arXiv 2505.06708), G1.

  Args:
    logits: [batch, q_len, heads] for a gate a head, or [batch, q_len, heads,
      v_dim] for one an element.
  """
  checks.floating("logits", logits)
  return Gate(logits)


def value_sum(weight: Float[Array, "batch q_len heads"]) -> Finish:
  """Adds weight * (sum of the values that the query sees).

  Args:
    weight: [batch, q_len, heads].
  """
  checks.floating("weight", weight)
  return ValueSum(weight)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gate(Finish):
  """sigmoid(logits) * out."""

  logits: Array

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
    return out * jax.nn.sigmoid(logits)


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
