"""Normalizers: how scores become weights.

`weights` is the definition. `fused` says the same through a kernel that knows
softmax and the plain sigmoid only: weights f(s) / sum f(s) of a positive map f
are a softmax of log f(s), and a constant in the denominator is a sink.
"""

import abc
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks, tiles
from attention import scores as score_mods
from attention.tiles import Operand

# One pass of a kernel, `attend(*mods, weigh="softmax")`, returns (output,
# log-sum-exp) of softmax(scores) v with `mods` after the scores' own
# modifications; `weigh` "sigmoid" takes sigmoid(scores) v instead, and "ones"
# the sum of visible values.
Attend = Callable[..., tuple[Array, Array]]


class Normalizer(abc.ABC):
  """How scores become weights; a frozen dataclass registered as a pytree."""

  # Empty but not abstract (B027): most normalizers carry no arrays.
  def check(self, batch: int, heads: int, q_len: int) -> None:  # noqa: B027
    """Raises ValueError unless the arrays fit scores of these sizes."""

  @abc.abstractmethod
  def weights(
    self, scores: Array, visible: Array | None
  ) -> tuple[Array, Array | None]:
    """Returns weights and their log-sum-exp, where that means something.

    Args:
      scores: [batch, heads, q_len, kv_len] in float32.
      visible: booleans that broadcast to `scores`, or None if all are seen.

    Returns:
      Weights like `scores`, zero where not visible, and the logarithm of their
      denominator [batch, heads, q_len] or None.
    """

  @abc.abstractmethod
  def fused(
    self, attend: Attend, counts: Callable[[], Array]
  ) -> tuple[Array, Array | None]:
    """Returns what `weights` makes of the values, by passes of a kernel.

    Args:
      attend: runs the kernel.
      counts: gives the number of keys each query sees, float32, all of
        [batch, heads, q_len] possibly of size one.

    Returns:
      Output [batch, q_len, heads, v_dim] and log-sum-exp as above.
    """


def softmax() -> Normalizer:
  """exp(s) / sum exp(s); a query that sees nothing gets zeros."""
  return Softmax(None)


def softmax_with_sink(sink: Float[Array, " heads"]) -> Normalizer:
  """exp(s) / (exp(sink) + sum exp(s)), a learned sink for each head.

  The form of GPT-OSS; `sink` zero is the softmax that is "off by one".

  Args:
    sink: [heads].
  """
  checks.floating("sink", sink)
  return Softmax(sink)


def softplus(epsilon: float = 1e-8) -> Normalizer:
  """softplus(s) / (sum softplus(s) + epsilon): LSSA without its scale.

  "Softplus Attention with Re-weighting" (arXiv 2501.13428), equations 3 and 4;
  queries and keys have unit norm and the scale is `scales.log_length`.
  """
  checks.number("epsilon", epsilon, above=0.0)
  return Softplus(epsilon)


def reweighted_softplus(
  power: float, *, epsilon: float = 1e-8, free_rows: int = 3
) -> Normalizer:
  """LSSAR: the weights of `softplus`, sharpened.

  With a the weights of `softplus` and n the number of keys that a query sees,
  b = relu(n a - o)^power and the weights are b / (sum b + epsilon), where o is
  one, but zero for queries that see no more than `free_rows` keys
  (arXiv 2501.13428, equation 5).

  Args:
    power: 3 is best at the length of training, 15 beyond it.
    epsilon: in both denominators.
    free_rows: how many keys are too few to be thinned out.
  """
  checks.number("power", power)
  checks.number("epsilon", epsilon, above=0.0)
  checks.whole("free_rows", free_rows, 0)
  if power < 1:
    raise ValueError(f"power is {power}; it must be at least 1")
  return ReweightedSoftplus(power, epsilon, free_rows)


def sigmoid() -> Normalizer:
  """sigmoid(s), not normalised (arXiv 2409.04431; add -log n as a bias)."""
  return Sigmoid()


def affine(
  alpha: Float[Array, "batch q_len heads"],
  alpha_mean: Float[Array, " heads"],
  length: int | None = None,
) -> Normalizer:
  """alpha softmax(s) + (alpha_mean - alpha) / N, for visible keys.

  "Affine-Scaled Attention" (arXiv 2602.23057), with `alpha_mean` the moving
  average of alpha in training.

  Args:
    alpha: scale of each query and head, [batch, q_len, heads].
    alpha_mean: [heads].
    length: N; the number of keys that the query sees if None.
  """
  checks.floating("alpha", alpha)
  checks.floating("alpha_mean", alpha_mean)
  if length is not None:
    checks.whole("length", length, 1)
  return Affine(alpha, alpha_mean, length)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softmax(Normalizer):
  """Softmax, with a sink [heads] or without."""

  sink: Array | None

  def check(self, batch, heads, q_len):
    if self.sink is not None:
      _check_shape("sink", self.sink, (heads,))

  def weights(self, scores, visible):
    if visible is not None:
      scores = jnp.where(visible, scores, -jnp.inf)
    sink = None if self.sink is None else self.sink[None, :, None, None]
    return _softmax(scores, sink)

  def fused(self, attend, counts):
    out, lse = attend()
    return (out, lse) if self.sink is None else _sunk(out, lse, self.sink)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softplus(Normalizer):
  """Softplus over its sum."""

  epsilon: float = dataclasses.field(metadata={"static": True})

  def weights(self, scores, visible):
    return _over_sum(jax.nn.softplus(scores), visible, self.epsilon), None

  def fused(self, attend, counts):
    out, _ = _sunk(*attend(LogSoftplus()), math.log(self.epsilon))
    return out, None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReweightedSoftplus(Normalizer):
  """The weights of Softplus, sharpened."""

  power: float = dataclasses.field(metadata={"static": True})
  epsilon: float = dataclasses.field(metadata={"static": True})
  free_rows: int = dataclasses.field(metadata={"static": True})

  def weights(self, scores, visible):
    if visible is None:
      visible = jnp.ones(scores.shape, bool)
    visible = jnp.broadcast_to(visible, scores.shape)
    count = jnp.sum(visible, axis=-1, keepdims=True, dtype=jnp.float32)
    first = _over_sum(jax.nn.softplus(scores), visible, self.epsilon)
    excess = jax.nn.relu(count * first - self._threshold(count))
    # The power is taken of what is at most one: 1024^15 is beyond float32, and
    # so is 0.001^-15. The weights do not depend on what is divided by.
    largest = jnp.max(excess, axis=-1, keepdims=True, initial=1.0)
    largest = jax.lax.stop_gradient(largest)
    sharp = (excess / largest) ** self.power
    epsilon = self.epsilon * largest**-self.power
    return sharp / (jnp.sum(sharp, axis=-1, keepdims=True) + epsilon), None

  def fused(self, attend, counts):
    _, lse = attend(LogSoftplus())
    count = counts()
    factor = count / (jnp.exp(lse) + self.epsilon)
    sharpen = LogReweighted(
      tiles.squeezed(factor, "bhq"),
      tiles.squeezed(self._threshold(count), "bhq"),
      self.power,
    )
    out, _ = _sunk(*attend(LogSoftplus(), sharpen), math.log(self.epsilon))
    return out, None

  def _threshold(self, count):
    return jnp.where(count <= self.free_rows, 0.0, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sigmoid(Normalizer):
  """Sigmoid of each score by itself."""

  def weights(self, scores, visible):
    weights = jax.nn.sigmoid(scores)
    if visible is not None:
      weights = jnp.where(visible, weights, 0.0)
    return weights, None

  def fused(self, attend, counts):
    return attend(weigh="sigmoid")[0], None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Affine(Normalizer):
  """Softmax scaled, plus a constant for each visible key."""

  alpha: Array
  alpha_mean: Array
  length: int | None = dataclasses.field(metadata={"static": True})

  def check(self, batch, heads, q_len):
    _check_shape("alpha", self.alpha, (batch, q_len, heads))
    _check_shape("alpha_mean", self.alpha_mean, (heads,))

  def weights(self, scores, visible):
    softmax, lse = Softmax(None).weights(scores, visible)
    ones = jnp.ones(scores.shape, jnp.float32)
    if visible is not None:
      ones = jnp.where(visible, ones, 0.0)
    count = jnp.sum(ones, axis=-1)
    alpha, beta = self._terms(lambda: count)
    return alpha[..., None] * softmax + beta[..., None] * ones, lse

  def fused(self, attend, counts):
    out, lse = attend()
    total, _ = attend(weigh="ones")
    # [batch, heads, q_len] -> [batch, q_len, heads, 1]
    alpha, beta = (x.swapaxes(1, 2)[..., None] for x in self._terms(counts))
    return alpha * out.astype(jnp.float32) + beta * total, lse

  def _terms(self, counts):
    alpha = self.alpha.astype(jnp.float32).swapaxes(1, 2)
    length = self.length
    if length is None:
      length = jnp.maximum(counts(), 1.0)
    mean = self.alpha_mean.astype(jnp.float32)[None, :, None]
    return alpha, (mean - alpha) / length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogSoftplus(score_mods.ScoreMod):
  """log(softplus(s)), which is s where softplus is exp to float32."""

  def modify(self, score, tile, *values):
    # log1p(exp(-|s|)) + max(s, 0) in the functions that kernels have, and by
    # `where`: the slopes of abs and maximum at zero do not add up to a half.
    safe = jnp.where(score < -20.0, -20.0, score)
    positive = safe >= 0
    softplus = jnp.where(positive, safe, 0.0)
    softplus += jnp.log1p(jnp.exp(jnp.where(positive, -safe, safe)))
    return jnp.where(score < -20.0, score, jnp.log(softplus))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogReweighted(score_mods.ScoreMod):
  """power * log(relu(factor * exp(s) - threshold)), -inf for log 0."""

  factor: Operand
  threshold: Operand
  power: float = dataclasses.field(metadata={"static": True})

  def operands(self):
    return self.factor, self.threshold

  def modify(self, score, tile, *values):
    factor, threshold = values
    excess = factor * jnp.exp(score) - threshold
    positive = excess > 0
    log = jnp.log(jnp.where(positive, excess, 1.0))
    return jnp.where(positive, self.power * log, -jnp.inf)


def _check_shape(name: str, array: Array, fits: tuple[int, ...]) -> None:
  if array.shape != fits:
    raise ValueError(
      f"{name} of the normalizer has shape {array.shape}; it must be "
      f"[{', '.join(map(str, fits))}]"
    )


def _softmax(scores: Array, sink: Array | None) -> tuple[Array, Array]:
  """Returns weights and log-sum-exp; rows of -inf get zeros and -inf."""
  largest = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
  if sink is not None:
    largest = jnp.maximum(largest, sink)
  largest = jax.lax.stop_gradient(
    jnp.where(jnp.isfinite(largest), largest, 0.0)
  )
  weights = jnp.exp(scores - largest)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  if sink is not None:
    total += jnp.exp(sink.astype(jnp.float32) - largest)
  empty = total == 0
  safe = jnp.where(empty, 1.0, total)
  lse = jnp.where(empty, -jnp.inf, largest + jnp.log(safe))
  return weights / safe, lse[..., 0]


def _over_sum(weights: Array, visible: Array | None, epsilon: float) -> Array:
  if visible is not None:
    weights = jnp.where(visible, weights, 0.0)
  return weights / (jnp.sum(weights, axis=-1, keepdims=True) + epsilon)


def _sunk(out: Array, lse: Array, sink: Array | float) -> tuple[Array, Array]:
  """Adds exp(sink) to the denominator of a softmax that is done.

  Args:
    out: [batch, q_len, heads, v_dim].
    lse: [batch, heads, q_len].
    sink: [heads] or a number.
  """
  if jnp.ndim(sink):
    sink = sink.astype(jnp.float32)[None, :, None]
  # Both may be -inf: a row without keys, a sink that is shut.
  largest = jax.lax.stop_gradient(jnp.maximum(lse, sink))
  largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
  own = jnp.exp(lse - largest)
  total = own + jnp.exp(sink - largest)
  empty = total == 0
  safe = jnp.where(empty, 1.0, total)
  kept = (own / safe).swapaxes(1, 2)[..., None]
  lse = jnp.where(empty, -jnp.inf, largest + jnp.log(safe))
  return out.astype(jnp.float32) * kept, lse
