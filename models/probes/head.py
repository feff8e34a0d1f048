"""A probe as a whole: pooling, batch norm without factors, logits."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from models import lina_layers
from models.layers import Dtype
from models.probes import names
from models.probes.parts import plain_batch_norm


class Head(nn.Module):
  """Maps what a trunk gives to logits, as efficient probing's code does it.

  The batch norm is of linear probing too, and its statistics are float32. The
  logits begin as PyTorch's dense layers, where that code has the encoder's own
  for all probes but efficient probing.

  Attributes:
    probe: a name of `models.probes.names`.
    options: fields of the pooling.
    num_classes: number of logits; if 0, what they would be made of comes out.
    implementation: of attention, see `attention.kernels.dispatch`.
    dtype: dtype of the computation; the result is float32.
    param_dtype: dtype of the parameters.
  """

  probe: str
  options: Mapping[str, Any] = FrozenDict()
  num_classes: int = 1000
  implementation: str = "auto"
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32

  def setup(self):
    if names.is_linear(self.probe):
      if self.options:
        raise ValueError(
          f"probe_options is {dict(self.options)}; probe {self.probe!r} has "
          "none"
        )
      return
    self.pool = names.create(
      self.probe,
      self.options,
      implementation=self.implementation,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
    """Maps what a trunk gives to logits [batch, classes].

    Args:
      maps: tokens [batch, rows, columns, width] and, where there is one, the
        class token [batch, 1, 1, width].
      train: whether batch norms take and move statistics.

    Raises:
      ValueError: if there is no such probe or option, or the class token is
        not there.
    """
    x = self._pool([jnp.asarray(x, self.dtype) for x in maps], train)
    x = plain_batch_norm(train, name="norm")(x)
    if self.num_classes:
      x = lina_layers.dense(
        self.num_classes,
        x.shape[-1],
        name="logits",
        dtype=self.dtype,
        param_dtype=self.param_dtype,
      )(x)
    return x.astype(jnp.float32)

  def _pool(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
    """Maps what a trunk gives to [batch, width]."""
    with_token = names.takes_class_token(self.probe)
    if with_token and len(maps) < 2:
      raise ValueError(
        f"probe {self.probe!r} reads the class token, which the trunk has not: "
        "take 'gap', or a probe without '_all'"
      )
    if names.is_linear(self.probe):
      return maps[1][:, 0, 0] if self.probe == "cls" else maps[0].mean((1, 2))
    grid = maps[0].shape[1:3]
    # [B, N, D], the class token first.
    tokens = [
      x.reshape(len(x), -1, x.shape[-1]) for x in maps[: 1 + with_token]
    ]
    return self.pool(
      jnp.concatenate(tokens[::-1], axis=1), None if with_token else grid, train
    )
