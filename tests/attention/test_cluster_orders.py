"""K-means orders of tokens against loops of Lloyd's, and what they are for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import cluster_orders, permutations


def drawn(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def lloyd(x, centroids, iterations):
  """Of one head, [tokens, dim], in float64; labels before the last move."""
  x, centroids = x.astype(float), centroids.astype(float)
  for _ in range(iterations):
    labels = []
    for token in x:
      distance = [((token - c) ** 2).sum() for c in centroids]
      labels.append(int(np.argmin(distance)))
    moved = []
    for number, c in enumerate(centroids):
      own = x[np.array(labels) == number]
      moved.append(own.mean(axis=0) if len(own) else c)
    centroids = np.array(moved)
  return labels, centroids


@pytest.mark.parametrize("iterations", [1, 4])
def test_clusters_are_those_of_loops(iterations):
  x = drawn((2, 29, 3, 5))
  centroids = drawn((2, 3, 6, 5), seed=1)
  # One that nobody is near, and two alike, of which the second has none.
  centroids[:, :, 2] += 100
  centroids[0, 1, 4] = centroids[0, 1, 1]
  run = jax.jit(cluster_orders.kmeans, static_argnums=2)
  labels, moved = run(jnp.asarray(x), jnp.asarray(centroids), iterations)
  for b, h in np.ndindex(2, 3):
    want, means = lloyd(x[b, :, h], centroids[b, h], iterations)
    assert labels[b, h].tolist() == want
    np.testing.assert_allclose(moved[b, h], means, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moved[b, h, 2], centroids[b, h, 2])
  assert moved.dtype == jnp.float32


def test_of_bfloat16_and_without_a_gradient():
  x = jnp.asarray(drawn((1, 40, 2, 4)), jnp.bfloat16)
  first = cluster_orders.first_centroids(jax.random.key(0), x, 5)
  half, full = (
    cluster_orders.kmeans(y, first, 3) for y in (x, x.astype(jnp.float32))
  )
  for a, b in zip(half, full, strict=True):
    np.testing.assert_array_equal(a, b)

  def spread(x):
    first = cluster_orders.first_centroids(jax.random.key(0), x, 5)
    return cluster_orders.kmeans(x, first, 3)[1].std()

  assert not jax.grad(spread)(x.astype(jnp.float32)).any()


def test_first_centroids_are_tokens_of_their_head():
  x = drawn((2, 50, 3, 4))
  run = functools.partial(cluster_orders.first_centroids, clusters=8)
  first, other = (
    np.asarray(run(jax.random.key(n), jnp.asarray(x))) for n in (0, 1)
  )
  assert (first != other).any()
  chosen = set()
  for b, h, n in np.ndindex(2, 3, 8):
    here = (x[b, :, h] == first[b, h, n]).all(axis=-1)
    assert here.sum() == 1
    chosen.add((n, int(here.argmax())))
  # Each head draws its own.
  assert len(chosen) > 24


def test_an_order_goes_by_clusters_and_back():
  labels = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 3, 21)))
  order = cluster_orders.order_of(labels)
  assert order.dtype == jnp.int32
  for b, h in np.ndindex(2, 3):
    row = labels[b, h].tolist()
    assert order[b, h].tolist() == sorted(range(21), key=lambda n: row[n])
  x = drawn((2, 21, 3, 4))
  moved = permutations.reordered(jnp.asarray(x), order)
  for b, h, n in np.ndindex(2, 3, 21):
    np.testing.assert_array_equal(moved[b, n, h], x[b, order[b, h, n], h])
  back = permutations.reordered(moved, permutations.inverse(order))
  np.testing.assert_array_equal(back, x)
  numpy = permutations.inverse(np.asarray(order))
  assert isinstance(numpy, np.ndarray)
  np.testing.assert_array_equal(numpy, permutations.inverse(order))
  one = permutations.reordered(jnp.asarray(x), np.arange(21)[::-1])
  np.testing.assert_array_equal(one, x[:, ::-1])


def test_means_of_equal_keys_are_exact_in_their_order():
  """Section 8 (ii), of keys that are equal but do not lie together."""
  rng = np.random.default_rng(2)
  q, kinds, values = (
    jnp.asarray(rng.standard_normal((2, n, 2, 8)), jnp.float32)
    for n in (32, 4, 4)
  )
  which = rng.permutation(np.repeat(np.arange(4), 16))
  k, v = (x[:, which] for x in (kinds, values))
  full = attention.dot_product_attention(q, k, v)
  options = {"block_q": 16, "block_k": 16}
  levels = np.full((1, 1, 2, 4), 8, np.int32)
  first = kinds.swapaxes(1, 2) + 0.01
  labels, _ = cluster_orders.kmeans(k, first, 3)
  order = cluster_orders.order_of(labels)
  moved = (permutations.reordered(x, order) for x in (k, v))
  out = attention.pyramid_attention(q, *moved, levels, **options)
  np.testing.assert_allclose(out, full, rtol=1e-5, atol=2e-6)
  plain = attention.pyramid_attention(q, k, v, levels, **options)
  assert np.abs(plain - full).max() > 0.1


def test_errors():
  x = jnp.ones((2, 9, 3, 4))
  with pytest.raises(ValueError, match="clusters is 10; of 9 tokens"):
    cluster_orders.first_centroids(jax.random.key(0), x, 10)
  with pytest.raises(ValueError, match="clusters"):
    cluster_orders.first_centroids(jax.random.key(0), x, 0)
  for shape in ((2, 4, 5, 4), (2, 3, 5, 3), (1, 3, 5, 4)):
    with pytest.raises(ValueError, match=r"need \(2, 3, clusters, 4\)"):
      cluster_orders.kmeans(x, jnp.ones(shape), 1)
  with pytest.raises(ValueError, match="iterations"):
    cluster_orders.kmeans(x, jnp.ones((2, 3, 5, 4)), 0)
