"""What hierarchical attention costs, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import attention
from attention import hierarchical, trees


def test_multiply_adds():
  assert hierarchical.multiply_adds(64, (), 8) == 2 * 64**2 * 8
  # 16 families of 4, 4 of 4, and the root's 4 children.
  expected = (16 * 16 + 4 * 16 + 16) * (8 + 3)
  assert hierarchical.multiply_adds(64, (4, 4), 8, 3) == expected
  # What XLA counts of the compiled scores and values is of that size.
  assert hierarchical.multiply_adds(61, (4, 4), 8, 3) == expected


def test_the_time_is_linear():
  """By the operations that XLA counts."""

  def operations(length):
    run = jax.jit(lambda x: call(trees.regular((4, 4)), x, x, x))
    lowered = run.lower(jnp.ones((1, length, 1, 4)))
    return lowered.cost_analysis()["flops"]

  assert operations(256) < 2.2 * operations(128)


@pytest.mark.parametrize("known", [True, False])
def test_runs_of_a_known_width_need_no_square(known):
  """No array is larger than a multiple of the length."""

  def largest(length):
    ids = jnp.asarray(np.arange(length) // np.array([4, 16])[:, None])[:, None]
    widest = (4, 4, length // 16) if known else None

    def run(x, ids):
      return call(trees.runs(ids, widest=widest), x, x, x)

    jaxpr = jax.make_jaxpr(run)(jnp.ones((1, length, 1, 4)), ids)
    return max(_sizes(jaxpr.jaxpr))

  growth = largest(512) / largest(256)
  assert growth == (2 if known else 4)


def _sizes(jaxpr):
  for equation in jaxpr.eqns:
    yield from (out.aval.size for out in equation.outvars)
    for inner in core.jaxprs_in_params(equation.params):
      yield from _sizes(inner)


Q = jnp.zeros((2, 6, 4, 8))
IDS = jnp.zeros((1, 2, 6), jnp.int32)
ERRORS = [
  (lambda: trees.regular((1,)), r"branchings\[0\] is 1; it must be at least 2"),
  (lambda: trees.regular((4, 2.5)), r"branchings\[1\] is 2.5"),
  (lambda: trees.runs(IDS[0]), r"ids has shape \(2, 6\)"),
  (lambda: trees.runs(IDS.astype(float)), "ids is an array of float32"),
  (lambda: trees.runs(IDS, widest=(3,)), r"widest is \(3,\).*need 2"),
  (lambda: trees.runs(IDS, apart=IDS), r"apart has shape.*need \(2, 6\)"),
  (
    lambda: call(trees.regular(lengths=jnp.ones(3, int))),
    "lengths has shape",
  ),
  (lambda: call(trees.runs(IDS[:, :1])), r"ids has shape \(1, 1, 6\)"),
  (lambda: call("tree"), "tree is 'tree'; it takes what attention.trees"),
  (lambda: call(trees.regular(), k=Q[:, :4]), r"k has shape \(2, 4, 4, 8\)"),
  (
    lambda: call(trees.regular(), k=Q[..., :4]),
    r"k has shape \(2, 6, 4, 4\)",
  ),
  (
    lambda: call(trees.regular(), v=Q[:, :, :3]),
    r"v has shape \(2, 6, 3, 8\)",
  ),
  (lambda: call(trees.regular(), scale=0), "scale is 0; it must be above 0"),
  (lambda: call(trees.regular(), self_term=1), "self_term is 1"),
  (
    lambda: call(trees.regular((2,)), sibling_embeddings=[jnp.ones((2, 1))]),
    "sibling_embeddings has 1 arrays; the tree has 2 levels",
  ),
  (
    lambda: call(trees.regular(), sibling_embeddings=[jnp.ones((5, 1))]),
    r"sibling_embeddings\[0\] has shape \(5, 1\).*each of 6 places",
  ),
]


def call(tree, q=Q, k=Q, v=Q, **options):
  return attention.hierarchical_attention(q, k, v, tree, **options)


@pytest.mark.parametrize(("wrong", "message"), ERRORS)
@pytest.mark.usefixtures("unchecked")
def test_errors(wrong, message):
  with pytest.raises(ValueError, match=message):
    wrong()
