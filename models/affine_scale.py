"""The scale of "Affine-Scaled Attention", and its moving average."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import normalizers
from models import layers, registry

COLLECTION = "moving_averages"
ACTIVATIONS = {
  "linear": lambda x: jnp.clip(0.1 * x + 0.5, 0.0, 1.0),
  "sigmoid": jax.nn.sigmoid,
}


class AffineScale(nn.Module):
  """Makes the normalizer alpha softmax(s) + (alpha_mean - alpha) / N.

  "Affine-Scaled Attention" (arXiv 2602.23057), equations 1-11: alpha of each
  token and head is a projection of the token without bias, clipped; alpha_mean
  is its moving average over training, a variable of the collection
  "moving_averages" that begins at 0, gets no gradient and moves when `train` is
  True. Ours, since the paper does not say: its mean is over all tokens that are
  no padding, and a step takes the average from before it, so that a batch in
  parts gives what the whole gives.

  Attributes:
    heads: query heads.
    length: N, a number, such as the tokens of a row in training, which is the
      same in decoding; 0 for the number of keys that a token sees, with which
      the weights of each row add up to alpha_mean.
    activation: "linear" for 0.1 x + 0.5 from 0 to 1, or "sigmoid", the paper's
      ablation.
    momentum: share of the average that a step keeps.
    kernel_init: initializer of the projection; keep it small, as the linear
      activation has no slope beyond 5.
    dtype: dtype of the projection; alpha is float32.
    param_dtype: dtype of the parameters.
  """

  heads: int
  length: int = 0
  activation: str = "linear"
  momentum: float = 0.9
  kernel_init: layers.Initializer = nn.initializers.normal(0.02)
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, positions: jax.Array | None, train: bool
  ) -> normalizers.Normalizer:
    """Returns the normalizer for queries of `x`.

    Args:
      x: [batch, length, width].
      positions: integers [batch, length], -1 for padding; None for none.
      train: whether the average moves; its collection must be mutable then.

    Raises:
      ValueError: if an attribute is out of its range.
    """
    self._check()
    logits = layers.DenseGeneral(
      self.heads,
      use_bias=False,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="alpha",
    )(x)
    alpha = ACTIVATIONS[self.activation](logits.astype(jnp.float32))
    shape = (self.heads,)
    average = self.variable(
      COLLECTION, "alpha_mean", jnp.zeros, shape, jnp.float32
    )
    before = average.value
    if train and not self.is_initializing():
      now = _mean(jax.lax.stop_gradient(alpha), positions, before)
      average.value = self.momentum * before + (1 - self.momentum) * now
    return normalizers.affine(
      alpha, jax.lax.stop_gradient(before), self.length or None
    )

  def _check(self) -> None:
    if self.activation not in ACTIVATIONS:
      raise registry.unknown("activation", self.activation, ACTIVATIONS)
    if self.length < 0:
      raise ValueError(
        f"length is {self.length}; N must be at least 1, such as the tokens of "
        "a row in training, or 0 for the keys that a token sees"
      )
    if not 0 <= self.momentum < 1:
      raise ValueError(
        f"momentum is {self.momentum}; the share of the average that a step "
        "keeps must be at least 0 and below 1"
      )


def _mean(
  alpha: jax.Array, positions: jax.Array | None, empty: jax.Array
) -> jax.Array:
  """Returns the mean over tokens [batch, length], of nothing `empty`."""
  if positions is None:
    return alpha.mean((0, 1))
  there = positions >= 0
  count = there.sum()
  total = jnp.where(there[..., None], alpha, 0.0).sum((0, 1))
  return jnp.where(count > 0, total / jnp.maximum(count, 1), empty)
