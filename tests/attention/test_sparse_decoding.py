"""Sparse steps of decoding, against the masks of the paper's words."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from attention.sparse_decoding import Budget, sparse_decoding_attention

HEADS, K_HEADS, V_HEADS, DIM, SLOTS = 8, 2, 4, 16, 61
# Padding before each row's first token, and its tokens: one of no token, and
# one that is shorter than sink and local.
START = np.array([0, 7, 23, 2, 60])
LENGTH = np.array([61, 40, 11, 3, 0])
BUDGETS = {
  "blocks": Budget(block=4, blocks=3, sink=4, local=5),
  "odd": Budget(block=3, blocks=2, sink=0, local=1),
  "tokens": Budget(block=1, blocks=6, sink=2, local=3),
  "local": Budget(block=4, blocks=0, sink=4, local=5),
  "all": Budget(block=4, blocks=20, sink=4, local=5),
  "all tokens": Budget(block=1, blocks=100, sink=1, local=1),
}


def _draw(seed=0, slots=SLOTS):
  rng = np.random.default_rng(seed)
  q = 2 * rng.standard_normal((len(START), 1, HEADS, DIM))
  keys = rng.standard_normal((len(START), K_HEADS, slots, DIM))
  values = rng.standard_normal((len(START), V_HEADS, slots, 5))
  return [x.astype(np.float32) for x in (q, keys, values)]


def _sums(keys, budget, start=START):
  """Sums of the keys of each block of each row, whole or not."""
  count = budget.blocks_of(keys.shape[2])
  sums = np.zeros((*keys.shape[:2], count, DIM), np.float32)
  for row, begin in enumerate(start):
    for block in range(count):
      first = begin + budget.sink + block * budget.block
      part = keys[row, :, first : first + budget.block]
      sums[row, :, block] = part.sum(axis=1)
  return sums


def _seen(q, keys, budget, row, k_head):
  """The tokens of a row that the queries of a head of keys see, in words."""
  length, start = LENGTH[row], START[row]
  group = HEADS // K_HEADS
  queries = q[row, 0, k_head * group : (k_head + 1) * group].astype(np.float64)
  logits = (queries @ keys[row, k_head, start : start + length].T).mean(axis=0)
  seen = np.zeros(length, bool)
  seen[: budget.sink] = True
  blocks = max(0, length - budget.sink - budget.local) // budget.block
  middle = budget.sink + blocks * budget.block
  seen[middle:] = True
  means = logits[budget.sink : middle].reshape(blocks, budget.block).mean(1)
  for block in np.argsort(-means)[: budget.blocks]:
    first = budget.sink + block * budget.block
    seen[first : first + budget.block] = True
  return seen


def _expected(q, keys, values, budget):
  out = np.zeros((len(START), 1, HEADS, values.shape[-1]))
  for row in np.flatnonzero(LENGTH):
    here = slice(START[row], START[row] + LENGTH[row])
    for head in range(HEADS):
      k_head = head * K_HEADS // HEADS
      logits = keys[row, k_head, here].astype(np.float64) @ q[row, 0, head]
      logits = logits / np.sqrt(DIM)
      logits[~_seen(q, keys, budget, row, k_head)] = -np.inf
      weights = np.exp(logits - logits.max())
      v = values[row, head * V_HEADS // HEADS, here]
      out[row, 0, head] = weights @ v / weights.sum()
  return out


def _call(budget, q, keys, values, **options):
  sums = _sums(keys, budget) if budget.needs_sums else None
  attend = functools.partial(
    sparse_decoding_attention, budget=budget, **options
  )
  return jax.jit(attend)(
    *map(jnp.asarray, (q, keys, values)),
    start=jnp.asarray(START),
    length=jnp.asarray(LENGTH),
    block_sums=None if sums is None else jnp.asarray(sums),
  )


@pytest.mark.parametrize("name", BUDGETS)
def test_sees_what_the_paper_says(name):
  arrays = _draw()
  out = _call(BUDGETS[name], *arrays)
  expected = _expected(*arrays, BUDGETS[name])
  np.testing.assert_allclose(out, expected, atol=2e-6)
  if "all" in name:
    dense = Budget(block=1, blocks=0, sink=0, local=SLOTS)
    np.testing.assert_allclose(out, _expected(*arrays, dense), atol=2e-6)


def test_in_bfloat16():
  q, keys, values = (np.asarray(x, jnp.bfloat16) for x in _draw())
  for name in ("local", "all", "all tokens"):
    out = _call(BUDGETS[name], q, keys.astype("f4").astype(keys.dtype), values)
    assert out.dtype == jnp.bfloat16
    arrays = (x.astype(np.float32) for x in (q, keys, values))
    expected = _expected(*arrays, BUDGETS[name])
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=0.02)


@pytest.mark.parametrize("implementation", ["tpu_interpret", "gpu_interpret"])
def test_kernels(implementation):
  arrays = _draw()
  out = _call(BUDGETS["blocks"], *arrays, implementation=implementation)
  expected = _expected(*arrays, BUDGETS["blocks"])
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_mean_score_of_a_block_is_the_score_of_its_mean_key():
  q, keys, _ = _draw()
  budget = BUDGETS["blocks"]
  means = _sums(keys, budget)[0, 0] / budget.block
  scores = keys[0, 0] @ q[0, 0, 0]
  whole = scores[4 : 4 + 4 * len(means)].reshape(-1, 4).mean(axis=1)
  np.testing.assert_allclose(means @ q[0, 0, 0], whole, atol=2e-6)


def test_a_planted_key_is_found():
  """One key in 64 blocks that fits the query, of 64 channels: all are seen."""
  rng = np.random.default_rng(0)
  budget, trials = Budget(block=16, blocks=4, sink=4, local=4), 50
  length = 4 + 64 * 16 + 4
  keys = rng.standard_normal((trials, 1, length, 64)).astype(np.float32)
  q = rng.standard_normal((trials, 1, 1, 64)).astype(np.float32)
  places = rng.integers(4, length - 4, trials)
  rows = np.arange(trials)
  keys[rows, 0, places] = 2 * q[:, 0, 0]
  values = np.zeros((trials, 1, length, 1), np.float32)
  values[rows, 0, places] = 1
  sums = keys[:, :, 4:-4].reshape(trials, 1, 64, 16, 64).sum(axis=3)

  def found(selection):
    attend = functools.partial(
      sparse_decoding_attention,
      budget=dataclasses.replace(budget, selection=selection),
    )
    out = jax.jit(attend)(
      *map(jnp.asarray, (q, keys, values)),
      start=jnp.zeros(trials, jnp.int32),
      length=jnp.full(trials, length),
      block_sums=jnp.asarray(sums),
    )
    return float((out > 0.5).mean())

  assert found("best") > 0.9
  # 4 of 64.
  assert found("random") < 0.3


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(equation.params))
    if equation.primitive.name == "pallas_call" or not inner:
      yield equation
      continue
    for part in inner:
      yield from _equations(part)


def _program(implementation, budget, slots=32768):
  shape = jax.ShapeDtypeStruct
  count = budget.blocks_of(slots)
  attend = functools.partial(
    sparse_decoding_attention, budget=budget, implementation=implementation
  )

  def step(q, keys, values, start, length, sums):
    return attend(q, keys, values, start=start, length=length, block_sums=sums)

  args = (
    shape((2, 1, 32, 64), jnp.bfloat16),
    shape((2, 4, slots, 64), jnp.bfloat16),
    shape((2, 16, slots, 64), jnp.bfloat16),
    *[shape((2,), jnp.int32)] * 2,
    shape((2, 4, count, 64), jnp.float32),
  )
  return list(_equations(jax.make_jaxpr(step)(*args).jaxpr))


@pytest.mark.parametrize("implementation", ["xla", "gpu", "tpu"])
def test_only_the_chosen_blocks_are_read(implementation):
  slots, budget = 32768, Budget(block=16, blocks=64, sink=4, local=16)
  equations = _program(implementation, budget, slots)
  readers = [
    e
    for e in equations
    if any(slots in getattr(x.aval, "shape", ()) for x in e.invars)
  ]
  # Each of keys and values: first tokens, blocks, last tokens.
  assert [e.primitive.name for e in readers] == ["gather"] * 6
  # Whole runs of tokens at a time.
  sizes = {e.params["slice_sizes"] for e in readers}
  assert sizes == {(1, 1, n, 64) for n in (4, 16, 31)}
  kernels = [e for e in equations if e.primitive.name == "pallas_call"]
  assert len(kernels) == (implementation != "xla")


def test_what_is_refused():
  arrays = _draw()
  with pytest.raises(ValueError, match=r"block_sums is None.*block=4"):
    sparse_decoding_attention(
      *map(jnp.asarray, arrays),
      start=jnp.asarray(START),
      length=jnp.asarray(LENGTH),
      budget=BUDGETS["blocks"],
    )
  q, keys, values = arrays
  with pytest.raises(ValueError, match="keys has 2 heads and values 1"):
    _call(BUDGETS["tokens"], q, keys, values[:, :1])
  with pytest.raises(ValueError, match="blocks is -1; it must be at least 0"):
    Budget(blocks=-1)
