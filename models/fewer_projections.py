"""Attention with fewer projections than queries, keys, values and output."""

import jax
import jax.numpy as jnp
import numpy as np

from models import registry, unequal_heads

PROJECTIONS = (
  "separate",
  "symmetric",
  "merged",
  "mirror",
  "cholesky",
  "none",
)


class FewerProjections(unequal_heads.UnequalHeads):
  """Projections that share a matrix, or that are left out.

  "Reducing the Transformer Architecture to a Minimum" (arXiv 2410.13732).
  Scores are x_i W x_j^T with a matrix W for each head, and of x of width N
  there are 4 N^2 parameters for W = W_Q W_K^T, values and output.

  Attributes:
    projections: "separate" has them all. "symmetric" has W_K = W_Q, 3 N^2, with
      any number of heads. The others have one head, of width N: "merged" has
      one matrix W, 3 N^2, and the keys are `x`; "mirror" one with W = W^T and
      "cholesky" W = T T^T with T lower triangular, N (N + 1) / 2 + 2 N^2 each;
      and "none" has nothing but W, N^2: values are `x` too, and their mean is
      the output. "mirror" and "cholesky" have no bias of queries and keys,
      "none" has none of the output.
  """

  projections: str = "separate"

  def projected(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `SequenceMixer.projected`.

    Raises:
      ValueError: if `projections` is not known or does not go with heads and
        widths.
    """
    if self.projections not in PROJECTIONS:
      raise registry.unknown("projections", self.projections, PROJECTIONS)
    if self.projections == "separate":
      return super().projected(x)
    self._check_heads(x.shape[-1])
    own = jnp.asarray(x, self.dtype)[:, :, None]
    if self.projections in ("mirror", "cholesky"):
      q = own @ self._triangle(x.shape[-1]).astype(self.dtype)[None, None]
    else:
      q = self.project(x, "query")
    shared = self.projections in ("symmetric", "cholesky")
    v = own if self.projections == "none" else self.project(x, "value")
    return q, q if shared else own, v

  def output(self, heads: jax.Array, width: int) -> jax.Array:
    """See `SequenceMixer.output`."""
    if self.projections == "none":
      return heads.reshape(*heads.shape[:2], width)
    return super().output(heads, width)

  def _triangle(self, width: int) -> jax.Array:
    """W of "mirror" or T of "cholesky", of N (N + 1) / 2 parameters."""
    below = np.tril_indices(width)

    def init(key, shape, dtype):
      square = self.kernel_init(key, (width, width), dtype)
      return square[below].reshape(shape)

    number = len(below[0])
    numbers = self.param("query_triangle", init, (number,), self.param_dtype)
    place = np.zeros((width, width), np.int32)
    place[below] = np.arange(number)
    if self.projections == "mirror":
      return numbers[np.maximum(place, place.T)]
    return jnp.where(np.tri(width, dtype=bool), numbers[place], 0)

  def _check_heads(self, width: int) -> None:
    if self.key_dim or self.query_hidden:
      raise ValueError(
        f"projections is {self.projections!r}, with key_dim={self.key_dim} and "
        f"query_hidden={self.query_hidden}; both must be 0, since queries and "
        "keys have no further maps"
      )
    if self.projections == "symmetric":
      if self.heads_of("key") != self.heads:
        raise ValueError(
          f"projections is 'symmetric', with {self.heads_of('key')} heads of "
          f"keys; they are the queries, so there must be heads={self.heads}"
        )
      return
    widths = [self.width_of(name) for name in ("query", "value")]
    if self.heads != 1 or widths != [width, width]:
      raise ValueError(
        f"projections is {self.projections!r}, with heads={self.heads} and "
        f"widths of queries and values {widths}; it needs heads=1, as wide as "
        f"the model, {width}"
      )
