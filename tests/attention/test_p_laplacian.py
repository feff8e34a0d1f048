"""Message passing along attention, against loops over pairs in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import p_laplacian

EPSILON = 1e-8
HEADS, QUERIES, VALUES, DIM = 2, 5, 7, 3


def arrays(columns, seed=0):
  """A map of attention, features of its rows and of its columns."""
  rng = np.random.default_rng(seed)
  weights = rng.dirichlet(np.ones(columns), (HEADS, QUERIES))
  queries = rng.standard_normal((HEADS, QUERIES, DIM))
  values = rng.standard_normal((HEADS, columns, DIM))
  return weights, queries, values


def loops(adjacency, nodes, p, mu):
  """The whole graph [n, n] of one head, as the paper's section 3 has it."""
  n = len(nodes)
  edges = np.zeros((n, n))
  for i in range(n):
    for j in range(n):
      step = np.sqrt(adjacency[i, j] + EPSILON) * (nodes[i] - nodes[j])
      length = np.sqrt(((step + EPSILON) ** 2).sum())
      edges[i, j] = adjacency[i, j] * length ** (p - 2)
  alpha = np.diag(1 / (edges.sum(1) + 2 * mu / p))
  return alpha @ edges, alpha * 2 * mu / p


def loops_self(weights, f, p, mu):
  out = []
  for a, nodes in zip(weights, f, strict=True):
    passed, kept = loops(a, nodes, p, mu)
    out.append((passed + kept) @ nodes)
  return np.stack(out)


def loops_bipartite(weights, queries, values, p, mu):
  out = []
  for a, q, v in zip(weights, queries, values, strict=True):
    n, k = a.shape
    whole = np.block([[np.zeros((n, n)), a], [a.T, np.zeros((k, k))]])
    passed, kept = loops(whole, np.concatenate([q, v]), p, mu)
    assert not kept[:n, n:].any()
    out.append(passed[:n, n:] @ v)
  return np.stack(out)


def close(ours, wanted, tolerance=1e-6):
  scale = np.abs(wanted).max()
  np.testing.assert_allclose(
    np.asarray(ours, np.float64), wanted, atol=tolerance * scale, rtol=0
  )


def to_jax(*given, dtype=jnp.float32):
  return [jnp.asarray(x, dtype) for x in given]


@pytest.mark.parametrize("p", [1.25, 1.5, 1.75, 2.0])
def test_both_graphs_equal_loops_over_pairs(p):
  weights, f, _ = arrays(QUERIES)
  weights[0, 2] = [0.5, 0, 0, 0.5, 0]  # Without an edge to itself.
  wanted = loops_self(weights, f, p, 0.1)
  ours = p_laplacian.aggregate(*to_jax(weights, f), p, 0.1)
  close(ours, wanted)
  bare = weights * (1 - np.eye(QUERIES))
  ours = p_laplacian.aggregate(*to_jax(weights, f), p, 0.1, self_edges=False)
  close(ours, loops_self(bare, f, p, 0.1))
  weights, q, v = arrays(VALUES)
  ours = p_laplacian.aggregate_bipartite(*to_jax(weights, q, v), p, 0.1)
  close(ours, loops_bipartite(weights, q, v, p, 0.1))
  ours = p_laplacian.aggregate_bipartite(
    *to_jax(weights, q, v, dtype=jnp.bfloat16), p, 0.1
  )
  assert ours.dtype == jnp.bfloat16
  close(ours, loops_bipartite(weights, q, v, p, 0.1), 0.03)


def test_an_edge_to_itself_outweighs_all_with_a_small_exponent():
  for p, factor in ((1.75, 77), (1.5, 5_946), (1.25, 458_502)):
    nodes = np.zeros((2, 8))
    passed, _ = loops(np.eye(2), nodes, p, 0.1)
    share = passed[0, 0]
    assert share / (1 - share) * 0.2 / p == pytest.approx(factor, rel=0.01)
    kept = p_laplacian.aggregate(
      jnp.eye(2)[None], jnp.asarray(np.array([[[1.0] * 8, [3.0] * 8]])), p, 0.1
    )
    np.testing.assert_allclose(kept[0, :, 0], [1, 3], rtol=1e-5)


def test_two_is_smoothing_and_a_large_mu_keeps_all():
  weights, f, _ = arrays(QUERIES)
  ours = p_laplacian.aggregate(*to_jax(weights, f), 2.0, 0.3)
  close(ours, (weights @ f + 0.3 * f) / 1.3)
  kept = p_laplacian.aggregate(*to_jax(weights, f), 1.5, 1e9, self_edges=False)
  close(kept, f)
  weights, q, v = arrays(VALUES)
  none = p_laplacian.aggregate_bipartite(*to_jax(weights, q, v), 1.5, 1e9)
  assert np.abs(none).max() < 1e-6


@pytest.mark.parametrize("graph", ["self", "without itself", "bipartite"])
def test_gradients_are_those_of_differences(graph):
  weights, q, v = arrays(QUERIES if graph != "bipartite" else VALUES)
  given = (weights, q, v) if graph == "bipartite" else (weights, q)
  given = (*given, 1.4, 0.2)
  rng = np.random.default_rng(1)
  factors = rng.standard_normal(q.shape)
  bare = 1 - (graph == "without itself") * np.eye(QUERIES, weights.shape[-1])

  def wanted(*given):
    if graph == "bipartite":
      return (factors * loops_bipartite(*given)).sum()
    return (factors * loops_self(given[0] * bare, *given[1:])).sum()

  def ours(*given):
    if graph == "bipartite":
      out = p_laplacian.aggregate_bipartite(*given)
    else:
      out = p_laplacian.aggregate(*given, self_edges=graph == "self")
    return (jnp.asarray(factors, jnp.float32) * out).sum()

  arguments = tuple(range(len(given)))
  grads = jax.grad(ours, arguments)(*to_jax(*given))
  for i, grad in enumerate(grads):
    way = rng.standard_normal(np.shape(given[i]))
    moved = [
      (*given[:i], given[i] + h * way, *given[i + 1 :]) for h in (1e-5, -1e-5)
    ]
    slope = (wanted(*moved[0]) - wanted(*moved[1])) / 2e-5
    found = (np.asarray(grad, np.float64) * way).sum()
    assert found == pytest.approx(slope, rel=2e-3, abs=2e-4), i


def test_what_is_masked_sends_nothing_and_has_finite_gradients():
  weights, q, v = arrays(VALUES)
  weights[..., 3:] = 0
  # And one that is where the query is.
  v[:, 0] = q[:, 0]

  def total(weights, q, v):
    out = p_laplacian.aggregate_bipartite(weights, q, v, 1.25, 0.1)
    return (out**2).sum()

  grads = jax.grad(total, (0, 1, 2))(*to_jax(weights, q, v))
  assert all(np.isfinite(grad).all() for grad in grads)
  assert not grads[2][:, 3:].any()
  changed = v.copy()
  changed[:, 3:] = 9
  a, b = (
    p_laplacian.aggregate_bipartite(*to_jax(weights, q, x), 1.25, 0.1)
    for x in (v, changed)
  )
  np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(("n", "length"), [(7, 3), (8, 4), (5, 5), (9, 1)])
def test_averages_are_pytorchs(n, length):
  torch = pytest.importorskip("torch")
  x = np.random.default_rng(0).standard_normal((2, n, 3)).astype(np.float32)
  pooled = torch.nn.functional.adaptive_avg_pool1d(
    torch.asarray(x.swapaxes(1, 2)), length
  )
  ours = p_laplacian.adaptive_average(jnp.asarray(x), length, 1)
  np.testing.assert_allclose(ours.swapaxes(1, 2), pooled, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit():
  weights, q, v = to_jax(*arrays(VALUES))
  for call, message in (
    (
      lambda: p_laplacian.aggregate(weights, q, 1.5, 1.0),
      r"weights have shape",
    ),
    (
      lambda: p_laplacian.aggregate_bipartite(weights, v, q, 1.5, 1.0),
      r"must be \[..., queries, values\]",
    ),
    (
      lambda: p_laplacian.aggregate_bipartite(weights, q, v, 1.0, 1.0),
      r"exponent is 1.0; it must be above 1 and at most 2",
    ),
    (
      lambda: p_laplacian.aggregate_bipartite(weights, q, v, 2.0, 0.0),
      r"mu is 0.0; it must be above 0",
    ),
    (
      lambda: p_laplacian.adaptive_average(v, 8, 1),
      r"length is 8; of an axis of 7",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      call()
