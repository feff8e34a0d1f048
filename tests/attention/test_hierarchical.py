"""Hierarchical attention against the recursion, and what Theorem 3.2 says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import attention
from attention import trees
from tests.attention import tree_oracle as oracle

HEADS, DIM, V_DIM = 4, 6, 3
# Words, sentences and paragraphs; the second row has padding on both sides, and
# a sentence of one word.
WORDS = [[0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3], [-1, 5, 5, 5, 6, 7, 7, 1, 1, 1, -1]]
SENTENCES = [[0] * 5 + [1] * 6, [0] * 4 + [1] * 3 + [2] * 4]
PARAGRAPHS = [[0] * 5 + [1] * 6, [4] * 7 + [5] * 4]
RAGGED = np.array([WORDS, SENTENCES, PARAGRAPHS], np.int32)


def draw(length, k_heads=HEADS, v_heads=HEADS, batch=2, dtype=jnp.float32):
  rng = np.random.default_rng(length)
  shapes = ((HEADS, DIM), (k_heads, DIM), (v_heads, V_DIM))
  return [
    jnp.asarray(rng.normal(size=(batch, length, *shape)) * 1.5, dtype)
    for shape in shapes
  ]


def attend(q, k, v, tree, **options):
  """Compiled as a whole, which is faster than its operations one by one."""

  @jax.jit
  def run(q, k, v):
    return attention.hierarchical_attention(q, k, v, tree, **options)

  return run(q, k, v)


def scores(q, k, row, head, scale=DIM**-0.5):
  """Scores of a head [length, length] in float64."""
  q, k = (np.asarray(x, np.float64) for x in (q, k))
  return scale * q[row, :, head] @ k[row, :, head * k.shape[2] // HEADS].T


def dense(q, k, row_trees, self_term):
  """theta [batch, heads, length, length] by the recursion."""
  return np.stack(
    [
      [
        oracle.weights(tree, scores(q, k, row, head), self_term)
        for head in range(HEADS)
      ]
      for row, tree in enumerate(row_trees)
    ]
  )


def cases():
  for branchings, length in (((), 7), ((4, 2), 13), ((2, 2, 2), 17)):
    tree = oracle.nested(oracle.windows(branchings, length))
    yield (
      f"regular {branchings} of {length}",
      trees.regular(branchings),
      length,
      [tree] * 2,
    )
  tree = [oracle.nested(oracle.windows((3,), n)) for n in (4, 11)]
  yield "padded", trees.regular((3,), jnp.array([4, 11])), 11, tree
  row_trees = [oracle.nested(RAGGED[:, row]) for row in range(2)]
  for widest in (None, (4, 0, 2, 2)):
    tree = trees.runs(jnp.asarray(RAGGED), widest=widest)
    yield f"ragged, widest {widest}", tree, 11, row_trees


CASES = {name: rest for name, *rest in cases()}


RAGGED_CASE = "ragged, widest (4, 0, 2, 2)"


@pytest.mark.parametrize(
  ("case", "self_term"),
  [
    *((case, True) for case in CASES),
    ("regular (4, 2) of 13", False),
    (RAGGED_CASE, False),
  ],
)
def test_the_recursion(case, self_term):
  tree, length, row_trees = CASES[case]
  # Grouped keys, and of one value for each key the weights come out.
  q, k, _ = draw(length, k_heads=2)
  v = jnp.broadcast_to(jnp.eye(length)[None, :, None], (2, length, 1, length))
  options = {"self_term": self_term, "return_log_partition": True}
  out, partition = attend(q, k, v, tree, **options)
  weights = out.swapaxes(1, 2)
  theta = dense(q, k, row_trees, self_term)
  np.testing.assert_allclose(weights, theta, atol=2e-6)
  for row, nodes in enumerate(row_trees):
    tokens = oracle.leaves(nodes)
    np.testing.assert_allclose(weights[row].sum(-1)[:, tokens], 1.0, atol=2e-6)
    for head in range(HEADS):
      root = oracle.log_partition(nodes, scores(q, k, row, head), self_term)
      np.testing.assert_allclose(
        partition[row, tokens, head], root, rtol=1e-5, atol=1e-5
      )


def test_linear_time_is_the_weights_times_the_values():
  tree, length, row_trees = CASES["padded"]
  q, k, v = draw(length, k_heads=2, v_heads=1)
  out = attend(q, k, v, tree)
  weights = jax.jit(lambda q, k: attention.hierarchical_weights(q, k, tree))(
    q, k
  )
  np.testing.assert_allclose(weights, dense(q, k, row_trees, True), atol=2e-6)
  expected = attention.apply_attention_weights(weights, v)
  np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("self_term", [True, False])
def test_the_theorem(self_term):
  """The least sum of KL is that of theta, and is known from F of the root."""
  tree = oracle.nested(oracle.windows((3, 2), 12))
  q, k, _ = draw(12, batch=1)
  s = scores(q, k, 0, 0)
  if not self_term:
    s = np.where(np.eye(12, dtype=bool), -np.inf, s)
  theta = oracle.weights(tree, s, self_term)
  softmax = s - scipy.special.logsumexp(s, axis=1, keepdims=True)

  def divergence(theta):
    there = theta > 0
    logs = np.log(theta, where=there, out=np.zeros_like(theta))
    return (theta * np.where(there, logs - softmax, 0.0)).sum()

  least = scipy.special.logsumexp(s, axis=1).sum()
  least -= 12 * oracle.log_partition(tree, s, self_term)
  assert abs(divergence(theta) - least) < 1e-12 * 12
  np.testing.assert_allclose(theta.sum(1), 1.0, atol=1e-14)
  blocks = _blocks(tree, self_term)
  for rows, columns in blocks:
    assert np.ptp(theta[np.ix_(rows, columns)]) == 0
  library, partition = attend(
    q,
    k,
    jnp.eye(12)[None, :, None],
    trees.regular((3, 2)),
    self_term=self_term,
    return_log_partition=True,
  )
  np.testing.assert_allclose(library[0, :, 0], theta, atol=2e-6)
  identity = scipy.special.logsumexp(s, axis=1).sum() - 12 * partition[0, 0, 0]
  np.testing.assert_allclose(identity, least, rtol=1e-4)

  # Of other scores come other weights that are constant on the same blocks.
  rng = np.random.default_rng(0)
  for _ in range(50):
    noise = 0.2 * rng.normal(size=s.shape)
    other = oracle.weights(tree, np.where(theta > 0, s, 0) + noise, self_term)
    np.testing.assert_allclose(other.sum(1), 1.0, atol=1e-12)
    assert divergence(other) > least + 1e-6


def _blocks(tree, self_term):
  """The pairs of leaves of siblings, and each leaf with itself."""
  if not isinstance(tree, list):
    return [([tree], [tree])] if self_term else []
  found = [
    (oracle.leaves(a), oracle.leaves(b))
    for a in tree
    for b in tree
    if a is not b
  ]
  for child in tree:
    found += _blocks(child, self_term)
  return found


def test_scipy_finds_no_less():
  """The minimum over blocks, by a solver that knows nothing of trees."""
  tree = [[0, 1, 2], [[3, 4], [5, 6, 7]]]
  rng = np.random.default_rng(1)
  s = rng.normal(size=(8, 8)) * 2
  blocks = _blocks(tree, True)
  cells = np.zeros((len(blocks), 8, 8))
  for cell, (rows, columns) in zip(cells, blocks, strict=True):
    cell[np.ix_(rows, columns)] = 1.0
  softmax = s - scipy.special.logsumexp(s, axis=1, keepdims=True)
  counts = cells.sum(axis=(1, 2))
  logs = (cells * softmax).sum(axis=(1, 2))
  found = scipy.optimize.minimize(
    lambda x: (counts * x * np.log(x) - x * logs).sum(),
    np.full(len(blocks), 1 / 8),
    jac=lambda x: counts * (np.log(x) + 1) - logs,
    bounds=[(1e-9, 1.0)] * len(blocks),
    constraints={
      "type": "eq",
      "fun": lambda x: cells.sum(axis=2).T @ x - 1.0,
      "jac": lambda x: cells.sum(axis=2).T,
    },
    method="SLSQP",
    options={"maxiter": 500, "ftol": 1e-13},
  )
  least = scipy.special.logsumexp(s, axis=1).sum()
  least -= 8 * oracle.log_partition(tree, s, True)
  np.testing.assert_allclose(found.fun, least, rtol=1e-7)
  np.testing.assert_allclose(
    np.einsum("c,cij->ij", found.x, cells),
    oracle.weights(tree, s, True),
    atol=1e-4,
  )


def test_one_level_is_softmax_attention():
  q, k, v = draw(13, k_heads=2)
  out = attend(q, k, v, trees.regular())
  expected = attention.dot_product_attention(q, k, v)
  np.testing.assert_allclose(out, expected, atol=1e-6)
  theta = oracle.weights(list(range(13)), scores(q, k, 0, 0), True)
  softmax = scipy.special.softmax(scores(q, k, 0, 0), axis=1)
  np.testing.assert_allclose(theta, softmax, atol=1e-15)


@pytest.mark.parametrize(
  "case", ["regular (4, 2) of 13", "ragged, widest None"]
)
def test_embeddings_of_siblings(case):
  tree, length, row_trees = CASES[case]
  q, k, v = draw(length)
  rng = np.random.default_rng(5)
  levels = 3 if "regular" in case else 4
  tables = [rng.normal(size=(11, 2)).astype(np.float32) for _ in range(levels)]

  def depth(node):
    return 1 + depth(node[0]) if isinstance(node, list) else -1

  def bonus(family, i, j):
    table = tables[depth(family)].astype(np.float64)
    return table[i] @ table[j]

  arrays = [jnp.asarray(table) for table in tables]
  out = attend(q, k, v, tree, sibling_embeddings=arrays)
  for row, nodes in enumerate(row_trees):
    s = scores(q, k, row, 1)
    theta = oracle.weights(nodes, s, True, bonus)
    np.testing.assert_allclose(
      out[row, :, 1], theta @ np.asarray(v, np.float64)[row, :, 1], atol=1e-5
    )


@pytest.mark.parametrize(
  ("case", "self_term"), [("padded", False), (RAGGED_CASE, True)]
)
def test_gradients_and_padding(case, self_term):
  """NaN in padding reaches nothing; gradients are those of theta v."""
  tree, length, row_trees = CASES[case]
  q, k, v = draw(length)
  there = np.zeros((2, length, 1, 1), bool)
  for row, nodes in enumerate(row_trees):
    there[row, oracle.leaves(nodes)] = True
  bar = np.random.default_rng(3).normal(size=(*q.shape[:3], V_DIM))
  spoilt = [jnp.where(there, x, jnp.nan) for x in (q, k, v)]

  @jax.jit
  def run(arrays, bar):
    def attend(arrays):
      return attention.hierarchical_attention(
        *arrays, tree, self_term=self_term
      )

    out, pull = jax.vjp(attend, arrays)
    return out, pull(bar)[0]

  out, gradients = run(spoilt, jnp.asarray(bar, jnp.float32))
  assert not np.where(there, 0.0, out).any()
  arrays = [np.where(there, x, 0.0).astype(np.float64) for x in (q, k, v)]

  def loss(q, k, v):
    theta = dense(q, k, row_trees, self_term)
    return (np.einsum("bhij,bjhd->bihd", theta, v) * bar).sum()

  rng = np.random.default_rng(4)
  for i, gradient in enumerate(gradients):
    assert np.isfinite(gradient).all()
    assert not np.where(there, 0.0, gradient).any()
    direction = rng.normal(size=gradient.shape) * there
    ends = []
    for step in (1e-5, -1e-5):
      moved = list(arrays)
      moved[i] = moved[i] + step * direction
      ends.append(loss(*moved))
    slope = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(
      (gradient * direction).sum(), slope, rtol=2e-3, atol=2e-3
    )


def test_bfloat16():
  q, k, v = draw(23, dtype=jnp.bfloat16)
  tree = trees.regular((4,))
  out = attend(q, k, v, tree)
  assert out.dtype == jnp.bfloat16
  nodes = [oracle.nested(oracle.windows((4,), 23))] * 2
  expected = np.einsum(
    "bhij,bjhd->bihd", dense(q, k, nodes, True), np.asarray(v, np.float64)
  )
  np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.03)


def test_large_scores_stay_in_log_space():
  q, k, v = draw(12)
  tree = trees.regular((3, 2))
  out = attend(100 * q, k, v, tree)
  assert np.isfinite(out).all()
  nodes = oracle.nested(oracle.windows((3, 2), 12))
  # The oracle is not in log space: a shift of all scores changes nothing.
  s = scores(100 * q, k, 0, 0)
  theta = oracle.weights(nodes, s - s.max() + 300, True)
  expected = theta @ np.asarray(v, np.float64)[0, :, 0]
  np.testing.assert_allclose(out[0, :, 0], expected, atol=1e-3)


def test_a_token_without_siblings():
  """It is as its parent; alone in its row it has nobody, without itself."""
  q, k, v = draw(5)
  nodes = oracle.nested(oracle.windows((4,), 5))
  assert nodes == [[0, 1, 2, 3], [4]]
  out = attend(q, k, v, trees.regular((4,)), self_term=False)
  others = np.asarray(v, np.float64)[:, :4].mean(axis=1)
  np.testing.assert_allclose(out[:, 4], others, atol=1e-6)

  def one(v, **options):
    return attend(q[:, :1], k[:, :1], v, trees.regular((4,)), **options)

  np.testing.assert_allclose(one(v[:, :1]), v[:, :1], atol=1e-6)
  assert not one(v[:, :1], self_term=False).any()
  gradient = jax.grad(lambda v: one(v, self_term=False).sum())(v[:, :1])
  assert not gradient.any()


def test_trees_beside_each_other():
  """Packed rows, each of whose documents is a tree."""
  apart = jnp.array([[0] * 5 + [1] * 2 + [2] * 6, [3] * 6 + [4] * 6 + [9]])
  spans = [[(0, 5), (5, 7), (7, 13)], [(0, 6), (6, 12)]]
  place = np.zeros((2, 13), np.int32)
  for row, row_spans in enumerate(spans):
    for start, end in row_spans:
      place[row, start:end] = np.arange(end - start)
  place[1, 12] = -3
  q, k, v = draw(13)
  tree = trees.runs(jnp.asarray(place // 3)[None], apart=apart, widest=(3, 2))
  out = attend(q, k, v, tree)
  for row, row_spans in enumerate(spans):
    for start, end in row_spans:
      nodes = oracle.nested(oracle.windows((3,), end - start))
      theta = oracle.weights(
        nodes, scores(q, k, row, 2)[start:end, start:end], True
      )
      alone = theta @ np.asarray(v, np.float64)[row, start:end, 2]
      np.testing.assert_allclose(out[row, start:end, 2], alone, atol=1e-5)
  assert not out[1, 12].any()


def test_a_row_that_is_wider_than_promised():
  q, k, v = draw(11)
  with pytest.raises(ValueError, match=r"widest is \(3, 2, 2, 2\); row 0 of"):
    trees.runs(jnp.asarray(RAGGED), widest=(3, 2, 2, 2))

  @jax.jit
  def run(ids, widest=(3, 2, 2, 2)):
    tree = trees.runs(ids, widest=widest)
    return attention.hierarchical_attention(q, k, v, tree)

  out = run(jnp.asarray(RAGGED))
  assert np.isnan(out[0]).all()
  assert np.isfinite(out[1]).all()
