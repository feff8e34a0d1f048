"""Hierarchical attention by the paper's recursion: NumPy, float64, no library.

A tree is a token's number or a list of trees. Scores of two nodes are means
of the scores of their tokens, since scores are linear in queries and keys.
"""

import numpy as np


def leaves(tree):
  if isinstance(tree, list):
    return [leaf for child in tree for leaf in leaves(child)]
  return [tree]


def nested(ids, tokens=None):
  """Returns the tree of runs of equal numbers, the inner levels first.

  Args:
    ids: [levels, length], a token whose first number is negative is none.
    tokens: the tokens of the tree, all that there are if None.
  """
  ids = np.asarray(ids)
  if tokens is None:
    tokens = range(ids.shape[1])
    if len(ids):
      tokens = [i for i in tokens if ids[0, i] >= 0]
  if len(ids) == 0:
    return list(tokens)
  runs = []
  for token in tokens:
    if not runs or ids[-1, runs[-1][-1]] != ids[-1, token]:
      runs.append([])
    runs[-1].append(token)
  return [nested(ids[:-1], run) for run in runs]


def windows(branchings, length):
  """Returns the ids of `trees.regular`, [levels, length]."""
  sizes = np.cumprod(np.asarray(branchings, int), dtype=int)
  return np.arange(length)[None] // sizes[:, None]


def log_partition(tree, s, self_term, bonus=None):
  """F of a tree.

  Args:
    tree: see above.
    s: scores of the tokens [length, length].
    self_term: whether F of a token is its score with itself, or -inf.
    bonus: `bonus(family, i, j)`, what is added to the scores of children i and
      j of a family; None for nothing.
  """
  if not isinstance(tree, list):
    return s[tree, tree] if self_term else -np.inf
  size = len(leaves(tree))
  total = 0.0
  for i, child in enumerate(tree):
    log_sum, _ = _denominator(tree, i, s, self_term, bonus)
    total += len(leaves(child)) / size * log_sum
  return total


def weights(tree, s, self_term, bonus=None):
  """theta [length, length], with zeros for tokens that the tree has not."""
  theta = np.zeros(s.shape)
  _fill(theta, tree, 1.0, s, self_term, bonus)
  return theta


def _fill(theta, tree, mass, s, self_term, bonus):
  if not isinstance(tree, list):
    if self_term:
      theta[tree, tree] = mass
    return
  for i, child in enumerate(tree):
    log_sum, own = _denominator(tree, i, s, self_term, bonus)
    if not np.isfinite(log_sum):
      continue
    for j, other in enumerate(tree):
      if i != j:
        weight = np.exp(_score(tree, i, j, s, bonus) - log_sum)
        theta[np.ix_(leaves(child), leaves(other))] = mass * weight
    _fill(theta, child, mass * np.exp(own - log_sum), s, self_term, bonus)


def _score(tree, i, j, s, bonus):
  mean = s[np.ix_(leaves(tree[i]), leaves(tree[j]))].mean()
  return mean + (0.0 if bonus is None else bonus(tree, i, j))


def _denominator(tree, i, s, self_term, bonus):
  """Returns log D of a child, and its F."""
  own = log_partition(tree[i], s, self_term, bonus)
  if not isinstance(tree[i], list) and self_term and bonus is not None:
    own += bonus(tree, i, i)
  total = np.exp(own)
  for j, other in enumerate(tree):
    if i != j:
      total += len(leaves(other)) * np.exp(_score(tree, i, j, s, bonus))
  return (np.log(total) if total > 0 else -np.inf), own
