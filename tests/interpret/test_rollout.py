"""Rollout against paths that are counted one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
from interpret import rollout
from tests.models import language


def _maps(layers=3, batch=2, heads=2, tokens=4):
  rng = np.random.default_rng(0)
  maps = rng.dirichlet(np.ones(tokens), (layers, batch, heads, tokens))
  return maps.astype(np.float32)


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_it_is_the_sum_over_paths(heads):
  maps = _maps()
  found = rollout.rollout(list(maps), 0.3, heads)
  joined = getattr(maps, heads)(2)
  mixed = 0.3 * np.eye(4) + 0.7 * joined
  mixed /= mixed.sum(-1, keepdims=True)
  for row, last, first in itertools.product(range(2), range(4), range(4)):
    paths = sum(
      mixed[2, row, last, a] * mixed[1, row, a, b] * mixed[0, row, b, first]
      for a, b in itertools.product(range(4), range(4))
    )
    assert found[2, row, last, first] == pytest.approx(paths, rel=1e-5)
  np.testing.assert_allclose(found.sum(-1), np.ones((3, 2, 4)), rtol=1e-5)


def test_golden():
  """Two tokens: the second looks half at the first, in both layers."""
  weights = jnp.array([[[[1.0, 0.0], [0.5, 0.5]]]])
  found = rollout.rollout([weights, weights])
  np.testing.assert_allclose(found[0, 0], [[1, 0], [0.25, 0.75]])
  np.testing.assert_allclose(found[1, 0], [[1, 0], [0.4375, 0.5625]])
  # With nothing but the residual sum, and with nothing of it.
  np.testing.assert_allclose(rollout.rollout([weights], 1.0)[0, 0], np.eye(2))
  np.testing.assert_allclose(rollout.rollout([weights], 0.0)[0], weights[0])


def test_padding_stays_itself_and_gradients_are_finite():
  maps = jnp.asarray(_maps()).at[:, 0, :, 1].set(0.0)
  found = rollout.rollout(list(maps), 0.0)
  np.testing.assert_allclose(found[-1, 0, 1], np.eye(4)[1], atol=1e-6)
  gradient = jax.grad(lambda m: rollout.rollout(list(m))[-1, 0, 2, 0])(maps)
  assert np.isfinite(gradient).all()
  assert (np.abs(gradient[:, 0, :, 2]).max((1, 2)) > 1e-3).all()
  half = rollout.rollout(list(maps.astype(jnp.bfloat16)))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, rollout.rollout(list(maps)), atol=0.02)


def test_of_a_model():
  model = language.model(depth=2, scan_layers=True)
  variables = language.variables(model)
  tokens = language.tokens()
  found = jax.jit(lambda v: rollout.of_model(model, v, tokens))(variables)
  assert found.shape == (2, 3, 11, 11)
  names = [f"layer_{i}/mixer/attention_weights" for i in range(2)]
  _, maps = interpret.run(model, variables, tokens, read=names)
  expected = rollout.rollout([maps[name] for name in names])
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(found, np.tril(found))


def test_errors():
  maps = list(_maps())
  with pytest.raises(ValueError, match="did you mean mean"):
    rollout.rollout(maps, heads="men")
  with pytest.raises(ValueError, match=r"residual is 1\.5"):
    rollout.rollout(maps, 1.5)
  with pytest.raises(ValueError, match="maps is empty"):
    rollout.rollout([])
  with pytest.raises(ValueError, match=r"maps\[1\] has shape \(2, 2, 4, 3\)"):
    rollout.rollout([maps[0], maps[1][..., :3]])
