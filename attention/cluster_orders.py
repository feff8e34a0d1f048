"""Orders in which tokens that are alike follow each other, by k-means.

The "semantic aware" order of PSA's released code (arXiv 2512.04025), which has
it from Sparse VideoGen 2 (arXiv 2505.18875). Queries and keys are put into
clusters, each row of the batch and each head by itself, and come cluster by
cluster, so that a block holds tokens that are alike: means lose less of them.
Unlike the orders of `attention.permutations`, which moves tokens by either and
takes them back, these are made while the program runs. Nothing here has a
gradient.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from attention import checks


def first_centroids(
  key: Array, x: Float[Array, "batch length heads dim"], clusters: int
) -> Float[Array, "batch heads clusters dim"]:
  """Returns tokens drawn by chance, each anew, to begin `kmeans` with.

  Args:
    key: random key.
    x: queries or keys.
    clusters: how many.

  Raises:
    ValueError: if there are more clusters than tokens, or none.
  """
  checks.whole("clusters", clusters, 1)
  batch, length, heads, _ = x.shape
  if clusters > length:
    raise ValueError(
      f"clusters is {clusters}; of {length} tokens there can be at most "
      f"{length}"
    )
  x = lax.stop_gradient(x).swapaxes(1, 2).astype(jnp.float32)
  drawn = jax.random.randint(key, (batch, heads, clusters), 0, length)
  return jnp.take_along_axis(x, drawn[..., None], axis=2)


def kmeans(
  x: Float[Array, "batch length heads dim"],
  centroids: Float[Array, "some_batch some_heads clusters some_dim"],
  iterations: int,
) -> tuple[
  Int[Array, "batch heads length"], Float[Array, "batch heads clusters dim"]
]:
  """Returns the cluster of each token, and the centroids behind that.

  In each iteration (Lloyd's) a token goes to its nearest centroid, the first of
  equals, and then a centroid becomes the mean of its tokens, or stays where it
  has none. The clusters are those of the last iteration, before its centroids
  moved. The released code stops when no centroid moves by 1e-4; further
  iterations change little there, and it has 50 in the first step of sampling
  and 2 in each later one, which goes on from the centroids before.

  Args:
    x: queries or keys.
    centroids: to begin with.
    iterations: at least 1.

  Raises:
    ValueError: if centroids do not fit, or for no iteration.
  """
  checks.whole("iterations", iterations, 1)
  batch, _, heads, dim = x.shape
  shape = centroids.shape
  if (*shape[:2], shape[-1]) != (batch, heads, dim) or len(shape) != 4:
    raise ValueError(
      f"centroids has shape {shape}; tokens of shape {x.shape} need "
      f"({batch}, {heads}, clusters, {dim})"
    )
  x, centroids = lax.stop_gradient((x, centroids))
  tokens = x.swapaxes(1, 2).astype(jnp.float32)
  centroids = centroids.astype(jnp.float32)
  clusters = shape[2]

  def of_head(tokens_and_centroids):
    tokens, centroids = tokens_and_centroids

    def assigned(centroids):
      # |x - c|^2 without |x|^2, which is the same for all.
      products = jnp.matmul(
        tokens, centroids.T, precision=lax.Precision.HIGHEST
      )
      squares = (centroids**2).sum(axis=-1)[None]
      nearest = jnp.argmin(squares - 2 * products, axis=-1)
      return nearest.astype(jnp.int32)

    def moved(_, labels_and_centroids):
      _, centroids = labels_and_centroids
      labels = assigned(centroids)
      # A product, for scattered sums come in any order on a GPU.
      # [clusters, tokens]
      here = jax.nn.one_hot(labels, clusters, axis=0, dtype=jnp.float32)
      total = jnp.matmul(here, tokens, precision=lax.Precision.HIGHEST)
      count = here.sum(axis=-1, keepdims=True)
      mean = total / jnp.maximum(count, 1)
      return labels, jnp.where(count > 0, mean, centroids)

    labels = jnp.zeros(len(tokens), jnp.int32)
    return lax.fori_loop(0, iterations, moved, (labels, centroids))

  # One head after another, for there may be many distances.
  flat = [y.reshape(batch * heads, *y.shape[2:]) for y in (tokens, centroids)]
  labels, centroids = lax.map(of_head, tuple(flat))
  return labels.reshape(batch, heads, -1), centroids.reshape(shape)


def order_of(
  labels: Int[Array, "batch heads length"],
) -> Int[Array, "batch heads length"]:
  """Returns the order in which clusters follow each other, by their numbers.

  Tokens of a cluster stay in their order.
  """
  return jnp.argsort(labels, axis=-1, stable=True).astype(jnp.int32)
