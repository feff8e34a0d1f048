"""The steps that are timed: dense and sparse ones attend alike."""

import functools

import jax
import numpy as np

from attention.sparse_decoding import Budget
from benchmarks import decode_cases


def test_blocks_that_cover_all_are_dense():
  outs = []
  for budget in (None, Budget(block=16, blocks=2, sink=4, local=16)):
    case = decode_cases.Case(2, 60, 4, 16, budget)
    q, cache = jax.jit(functools.partial(decode_cases.state, case))()
    sums = 0 if budget is None else 2 * 2 * 4 * 64 * 4
    assert case.bytes() == 2 * 60 * 20 * 64 * 2 + sums
    out, after = jax.jit(decode_cases.steps(case, 3, "xla"))(q, cache)
    assert after["index"] == 60
    outs.append(np.asarray(out, np.float32))
  np.testing.assert_allclose(*outs, atol=0.05)


def test_bytes_of_blocks_grow_with_the_sums_alone():
  budget = decode_cases.BUDGET
  few, many = (
    decode_cases.Case(1, 4 + 16 + 16 * n, 4, 16, budget).bytes()
    for n in (100, 200)
  )
  assert many - few == 100 * 4 * 64 * 4
  assert few == (4 + 16 + 1024) * 20 * 64 * 2 + 100 * 4 * 64 * 4
