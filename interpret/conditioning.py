"""Attention as conditioning: what a learning rule makes of a series of trials.

A memory S takes in a trial: a cue k (the conditional stimulus, a key) and an
outcome v (the unconditional one, a value). Read at a cue q it gives S q, how
strongly q makes expect the outcome ("Understanding Transformers through the
Lens of Pavlovian Conditioning", arXiv 2508.08289). Rules are linear attention
with other options, so that its layers do the same to trials in context:

    hebb    S + rate v k^T               linear attention
    trace   decay S + rate v k^T         with a decay
    delta   S + rate (v - S k) k^T       DeltaNet; Rescorla-Wagner
    oja     S + rate v (k - S^T v)^T     ours: Oja's, with v for its output

Only `delta` learns from what it did not expect, so only there a known cue
blocks a new one. It needs rate |k|^2 < 2, and its trials have an order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import attention
from attention import features, linear_normalizers


class Trials(NamedTuple):
  """A series of trials with cues A and B.

  Attributes:
    cues: which cues there are, 0 or 1, [trials, 2].
    outcomes: lambda, [trials, 1].
  """

  cues: jax.Array
  outcomes: jax.Array


def acquisition(trials: int) -> Trials:
  """A is followed by the outcome."""
  return _phases((trials, (1.0, 0.0), 1.0))


def extinction(trials: int, without: int) -> Trials:
  """Acquisition, and then A without the outcome."""
  return _phases((trials, (1.0, 0.0), 1.0), (without, (1.0, 0.0), 0.0))


def blocking(trials: int, together: int) -> Trials:
  """Acquisition of A, and then A and B together with the outcome."""
  return _phases((trials, (1.0, 0.0), 1.0), (together, (1.0, 1.0), 1.0))


def overshadowing(trials: int) -> Trials:
  """A and B together from the beginning: the control of `blocking`."""
  return _phases((trials, (1.0, 1.0), 1.0))


def hebb(
  cues: jax.Array, outcomes: jax.Array, tests: jax.Array, rate: float = 1.0
) -> jax.Array:
  """Contiguity: S_t = S_(t-1) + rate v_t k_t^T.

  Args:
    cues: [trials, dim].
    outcomes: [trials, channels].
    tests: what the memory is read at [tests, dim].
    rate: alpha beta of Rescorla and Wagner.

  Returns:
    float32 [trials, tests, channels], after each trial.
  """
  return _read(cues, rate * outcomes, tests)


def trace(
  cues: jax.Array,
  outcomes: jax.Array,
  tests: jax.Array,
  rate: float = 1.0,
  decay: float = 0.9,
) -> jax.Array:
  """Contiguity that fades: S_t = decay S_(t-1) + rate v_t k_t^T.

  Arguments and result are those of `hebb`; `decay` is from 0 to 1.
  """
  log = jnp.log(jnp.full((1,), decay))
  return _read(cues, rate * outcomes, tests, decay=log)


def delta(
  cues: jax.Array, outcomes: jax.Array, tests: jax.Array, rate: float = 1.0
) -> jax.Array:
  """Error correction: S_t = S_(t-1) + rate (v_t - S_(t-1) k_t) k_t^T.

  Of cues that are 0 or 1 it is the rule of Rescorla and Wagner, dV_x = alpha
  beta (lambda - sum of V over the cues that are there). Arguments and result
  are those of `hebb`.
  """
  strength = jnp.full((1, len(cues), 1), rate, jnp.float32)
  return _read(cues, outcomes, tests, write_strength=strength)


def oja(
  cues: jax.Array, outcomes: jax.Array, tests: jax.Array, rate: float = 1.0
) -> jax.Array:
  """Contiguity that is bounded: S_t = S + rate v_t (k_t - S^T v_t)^T.

  Arguments and result are those of `hebb`.
  """
  cues, outcomes, tests = (
    x.astype(jnp.float32) for x in (cues, outcomes, tests)
  )

  def trial(memory, pair):
    cue, outcome = pair
    memory += rate * jnp.outer(outcome, cue - memory.T @ outcome)
    return memory, tests @ memory.T

  memory = jnp.zeros((outcomes.shape[-1], cues.shape[-1]))
  return jax.lax.scan(trial, memory, (cues, outcomes))[1]


def _read(cues, outcomes, tests, **options) -> jax.Array:
  """Reads linear attention at all tests after each trial."""
  cues, outcomes, tests = (
    x.astype(jnp.float32) for x in (cues, outcomes, tests)
  )
  # A row for each test: [tests, trials, 1, dim or channels].
  shape = (len(tests), len(cues), 1)
  q = jnp.broadcast_to(tests[:, None, None], (*shape, tests.shape[-1]))
  k, v = (
    jnp.broadcast_to(x[None, :, None], (*shape, x.shape[-1]))
    for x in (cues, outcomes)
  )
  out = attention.linear_attention(
    q,
    k,
    v,
    feature_map=features.identity,
    normalizer=linear_normalizers.identity(),
    causal=True,
    **options,
  )
  return out[:, :, 0].swapaxes(0, 1)


def _phases(*phases) -> Trials:
  """Trials of phases (how many, which cues, the outcome)."""
  cues = [jnp.tile(jnp.array([which]), (n, 1)) for n, which, _ in phases]
  outcomes = [jnp.full((n, 1), outcome) for n, _, outcome in phases]
  return Trials(jnp.concatenate(cues), jnp.concatenate(outcomes))
