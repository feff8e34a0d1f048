"""Efficient probing: several queries, of which each pools values of its own.

"Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency"
(arXiv 2506.10178), after the authors' code, which has no projection of keys,
queries or outputs, whatever their README says of it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import lina_layers
from models.probes.parts import Grid, Pooling


class EfficientProbing(Pooling):
  """z_j = softmax_n(c_j x_n / sqrt(D)) x_n W_j, for queries c_j, concatenated.

  W_j is a block of D / (shrink * queries) columns of one matrix. A mean
  commutes with a product, so tokens are pooled first and projected then, which
  takes as many fewer products of values as there are tokens.

  Its map, the tap "attention_weights", is [batch, 1, queries, tokens].

  Attributes:
    queries: how many; the published results have 32.
    shrink: width of the tokens over that of the result, d_out in the paper's
      code.
  """

  queries: int = 32
  shrink: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
    """Maps tokens [B, N, D] to [B, D / shrink]."""
    del grid, train
    width = x.shape[-1]
    self._check(width)
    queries = self.token("queries", width, count=self.queries)
    tokens = x[:, :, None]
    # [B, Q, 1, D]: the scale is D ** -0.5.
    pooled = self.attend(queries[None, :, None], tokens, tokens)[:, :, 0]
    kernel = self.param(
      "value_kernel",
      lina_layers.uniform(width),
      (width, width // self.shrink),
      self.param_dtype,
    )
    # [D, Q, D / (shrink Q)].
    blocks = kernel.reshape(width, self.queries, -1).astype(self.dtype)
    z = jnp.einsum("bqd,dqe->bqe", pooled, blocks)
    return z.reshape(len(x), -1)

  def _check(self, width: int) -> None:
    for field in ("queries", "shrink"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field} is {getattr(self, field)}; it must be at least 1"
        )
    if width % (self.queries * self.shrink):
      raise ValueError(
        f"queries is {self.queries} and shrink {self.shrink}; their product "
        f"must divide the width of tokens, {width}"
      )
