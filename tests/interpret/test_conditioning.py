"""Learning rules on series of trials: golden numbers, and NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import conditioning

BOTH = jnp.eye(2)


def strengths(rule, trials, **options):
  """V of A and B after the last trial, at alpha beta = 0.2."""
  run = jax.jit(functools.partial(rule, rate=0.2, **options))
  return run(*trials, BOTH)[-1, :, 0]


def test_rescorla_and_wagner():
  v = functools.partial(strengths, conditioning.delta)
  acquired = v(conditioning.acquisition(20))
  np.testing.assert_allclose(acquired, [0.988471, 0.0], atol=1e-6)
  extinct = v(conditioning.extinction(20, 20))
  np.testing.assert_allclose(extinct, [0.011396, 0.0], atol=1e-6)
  blocked = v(conditioning.blocking(20, 20))
  assert blocked[1] == pytest.approx(0.005764, abs=1e-6)
  overshadowed = v(conditioning.overshadowing(20))
  np.testing.assert_allclose(overshadowed, [0.499982] * 2, atol=1e-6)


def test_contiguity_blocks_nothing():
  blocked = strengths(conditioning.hebb, conditioning.blocking(20, 20))
  np.testing.assert_allclose(blocked, [8.0, 4.0], rtol=1e-6)
  extinct = strengths(conditioning.hebb, conditioning.extinction(20, 20))
  np.testing.assert_allclose(extinct, [4.0, 0.0], rtol=1e-6)
  # A trace fades, and what remains of it is a geometric series.
  faded = strengths(
    conditioning.trace, conditioning.extinction(20, 20), decay=0.8
  )
  np.testing.assert_allclose(faded[0], (1 - 0.8**20) * 0.8**20, rtol=1e-4)
  # Oja's is bounded, and it does not block.
  bounded = strengths(conditioning.oja, conditioning.blocking(20, 20))
  expected = [1 - 0.8**40, 1 - 0.8**20]
  np.testing.assert_allclose(bounded, expected, rtol=1e-5)


def in_float64(step, cues, outcomes, tests):
  memory, read = np.zeros((outcomes.shape[1], cues.shape[1])), []
  for k, v in zip(cues, outcomes, strict=True):
    memory = step(memory, k, v)
    read.append(tests @ memory.T)
  return np.array(read)


STEPS = {
  "hebb": ({}, lambda s, k, v: s + 0.3 * np.outer(v, k)),
  "trace": (
    {"decay": 0.7},
    lambda s, k, v: 0.7 * s + 0.3 * np.outer(v, k),
  ),
  "delta": ({}, lambda s, k, v: s + 0.3 * np.outer(v - s @ k, k)),
  "oja": ({}, lambda s, k, v: s + 0.3 * np.outer(v, k - s.T @ v)),
}


@pytest.mark.parametrize("name", STEPS)
def test_rules(name):
  rng = np.random.default_rng(0)
  cues, outcomes, tests = (rng.normal(size=s) for s in ((9, 5), (9, 3), (4, 5)))
  cues /= np.linalg.norm(cues, axis=1, keepdims=True)
  outcomes /= np.linalg.norm(outcomes, axis=1, keepdims=True)
  options, step = STEPS[name]
  rule = functools.partial(getattr(conditioning, name), rate=0.3, **options)
  arrays = [jnp.asarray(x, jnp.float32) for x in (cues, outcomes, tests)]
  read = jax.jit(rule)(*arrays)
  assert read.shape == (9, 4, 3)
  expected = in_float64(step, cues, outcomes, tests)
  np.testing.assert_allclose(read, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("number", "hebbian", "corrected"),
  [
    (16, 0.484, 0.367),
    (32, 0.696, 0.535),
    (64, 0.992, 0.769),
    (96, 1.218, 0.926),
  ],
)
def test_one_pass_of_error_correction(number, hebbian, corrected):
  """The errors of recall at the keys themselves, dim = 64, rate 1."""
  rng = np.random.default_rng(number)
  k, v = rng.normal(size=(2, 8, number, 64)).astype(np.float32)
  k, v = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (k, v))

  @jax.jit
  def errors(k, v):
    def last(rule):
      read = jax.vmap(lambda k, v: rule(k, v, k)[-1])(k, v)
      return jnp.sqrt(((read - v) ** 2).sum(-1).mean())

    return last(conditioning.hebb), last(conditioning.delta)

  found = errors(k, v)
  np.testing.assert_allclose(found, [hebbian, corrected], rtol=0.03)
  assert found[1] < found[0]
