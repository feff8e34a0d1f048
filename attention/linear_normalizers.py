"""Normalizers of linear attention: what becomes of its sums.

With w_ij = phi(q_i) . phi(k_j) g_j over the keys j that query i sees, N of
them, linear attention gives a normalizer sum_j w_ij v_j and sum_j w_ij.
"""

import abc
import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array

from attention import checks


class LinearNormalizer(abc.ABC):
  """What becomes of the sums; a frozen dataclass registered as a pytree."""

  # Whether it means something for a memory that decays.
  takes_decay = True
  # Whether it means something where keys correct what others wrote.
  takes_corrections = False

  @abc.abstractmethod
  def normalize(
    self,
    sums: Array,
    weight: Array,
    count: Array,
    mean: Callable[[], Array],
    dim: int,
  ) -> Array:
    """Returns the output [batch, q_len, heads, v_dim].

    A query that sees nothing has sums of zero, a weight of one and a count of
    one, so that dividing by them gives zeros.

    Args:
      sums: sum_j w_ij v_j [batch, q_len, heads, v_dim], float32.
      weight: sum_j w_ij [batch, q_len, heads, 1].
      count: N, with all four axes, each possibly of size one.
      mean: gives the mean of the values that each query sees, which broadcasts
        to `sums`.
      dim: channels of a query.
    """


def division(
  epsilon: float = 1e-6, *, per_key: bool = True
) -> LinearNormalizer:
  """sum_j w_ij v_j / (sum_j w_ij + N * epsilon).

  LINA: `relu_epsilon`, 1e-6 (arXiv 2601.22630); LinFusion: `elu_plus_one`, 1e-4
  (arXiv 2409.02097); Based: `taylor`, causal, 1e-12 not per key (arXiv
  2402.18668).

  Args:
    epsilon: at least 0.
    per_key: whether `epsilon` is relative to the mean over keys; if not, it is
      added as it is.
  """
  checks.number("epsilon", epsilon)
  if epsilon < 0:
    raise ValueError(f"epsilon is {epsilon}; it must be at least 0")
  checks.flag("per_key", per_key)
  return Division(epsilon, per_key)


def subtraction(scale: float | None = None) -> LinearNormalizer:
  """s/N sum_j w_ij v_j + (1 - s/N sum_j w_ij) mean_j v_j: InLine, with `relu`.

  Args:
    scale: s; dim ** -0.5 if None.
  """
  if scale is not None:
    checks.number("scale", scale)
  return Subtraction(scale)


def identity() -> LinearNormalizer:
  """sum_j w_ij v_j as it is, the core of `flow_attention`."""
  return Identity()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Division(LinearNormalizer):
  """The sum over the sum of the weights."""

  epsilon: float = dataclasses.field(metadata={"static": True})
  per_key: bool = dataclasses.field(metadata={"static": True})

  def normalize(self, sums, weight, count, mean, dim):
    extra = self.epsilon * count if self.per_key else self.epsilon
    return sums / (weight + extra)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Subtraction(LinearNormalizer):
  """The mean over keys, and what lacks to weights of one."""

  scale: float | None = dataclasses.field(metadata={"static": True})
  takes_decay = False

  def normalize(self, sums, weight, count, mean, dim):
    share = (dim**-0.5 if self.scale is None else self.scale) / count
    return share * sums + (1.0 - share * weight) * mean()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Identity(LinearNormalizer):
  """The sum as it is."""

  takes_corrections = True

  def normalize(self, sums, weight, count, mean, dim):
    return sums
