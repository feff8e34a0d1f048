"""The cost model of Kinetics, against published numbers and plain loops."""

import itertools

import numpy as np
import pytest

from tools import kinetics

# Tera-operations, and bytes times the intensity, of 1024 and 32768 tokens: of
# dense attention, of the best 1024 tokens, and of 64 blocks of 16.
GOLDEN = """\
| Qwen3-0.6B | 180.12, 36799.28 | 56.98, 2164.66 | 61.07, 3314.64 |
| Qwen3-8B | 873.19, 47313.36 | 556.53, 2783.14 | 567.05, 4261.68 |
| Qwen3-14B | 1435.26, 52570.40 | 995.45, 3092.38 | 1010.06, 4735.20 |
| Qwen3-32B | 3343.23, 84112.64 | 2217.33, 4947.80 | 2254.71, 7576.32 |
"""
SMALL = kinetics.Model(1000, layers=3, heads=8, kv_heads=2, head_dim=5)


def test_the_command_prints_the_golden_table(capsys):
  kinetics.main([])
  printed = capsys.readouterr().out.splitlines()
  assert len(printed) == 2 + len(kinetics.MODELS)
  for line in GOLDEN.splitlines():
    assert line in printed
  kinetics.main(["--trials=8"])
  assert "| Qwen3-8B | 6985.52, 359024.91 |" in capsys.readouterr().out
  with pytest.raises(SystemExit):
    kinetics.main(["--trials=0"])


def _steps(prompt, generated, budget):
  """Operations of attention of SMALL, and bytes it reads, token by token."""
  flops, read = 0, 0
  for t in range(generated):
    seen = min(budget, prompt + t)
    for _ in range(SMALL.layers):
      # A multiplication and an addition, with keys and with values.
      flops += SMALL.heads * seen * SMALL.head_dim * 2 * 2
      read += SMALL.kv_heads * seen * SMALL.head_dim * 2 * 2
  return flops, read


@pytest.mark.parametrize(
  ("prompt", "generated", "budget"), [(7, 40, 20), (30, 40, 20), (3, 9, 20)]
)
def test_equals_a_loop_over_tokens(prompt, generated, budget):
  """The last never reaches its budget."""
  linear = 2 * SMALL.parameters * generated
  flops, read = _steps(prompt, generated, budget)
  cost = kinetics.top_k(SMALL, prompt, generated, 3, budget=budget)
  assert cost == (3 * (linear + flops), 3 * read)
  assert cost.equivalent_flops() == 3 * (linear + flops) + 562.5 * 3 * read
  blocks = kinetics.block_top_k(
    SMALL, prompt, generated, 3, block=4, blocks=4, local=budget - 16
  )
  means = (2 * prompt + generated) // 4 * generated
  assert blocks.flops - cost.flops == 3 * means * 3 * 8 * 5
  means = (2 * prompt + 3 * generated) // 4 * generated
  assert blocks.bytes - cost.bytes == means * 3 * 2 * 5
  # The paper's sum of an integral is a half for each token above.
  flops, read = _steps(prompt, generated, 10**9)
  half = generated * SMALL.layers * SMALL.head_dim * 2
  dense = kinetics.dense(SMALL, prompt, generated)
  assert dense.flops == linear + flops + half * SMALL.heads
  assert dense.bytes == read + half * SMALL.kv_heads


def test_trials_of_dense_attention_share_the_prompt():
  one, five = (kinetics.dense(SMALL, 100, 10, n) for n in (1, 5))
  assert five.flops == 5 * one.flops
  prompt = 2 * 2 * 100 * 10 * SMALL.key_channels
  assert five.bytes - prompt == 5 * (one.bytes - prompt)


def test_the_sign_of_the_published_code():
  sums = [kinetics.seen_tokens(100, 4096, 1024, t) for t in kinetics.SUMS]
  assert sums == [3766954, 3767416, 4621192]
  assert len({kinetics.seen_tokens(2000, 9, 99, t) for t in kinetics.SUMS}) == 1
  theirs = kinetics.top_k(SMALL, 0, 9, budget=5, total="published")
  assert theirs.bytes == 4 * 57.5 * SMALL.key_channels
  with pytest.raises(ValueError, match=r"total is .plus.*exact., .closed"):
    kinetics.seen_tokens(1, 1, 1, "plus")


def test_pass_at_counts_all_draws():
  for correct, trials in itertools.product(range(7), range(1, 7)):
    draws = list(itertools.combinations(range(6), trials))
    solved = sum(min(draw) < correct for draw in draws) / len(draws)
    assert kinetics.pass_at(6, correct, trials) == pytest.approx(solved)
  for wrong in ((6, 7, 1), (6, 1, 0), (6, 1, 7)):
    with pytest.raises(ValueError, match="samples is 6"):
      kinetics.pass_at(*wrong)


def test_coverage_and_frontier_by_all_pairs():
  rng = np.random.default_rng(0)
  costs = rng.integers(1, 9, (5, 30)).astype(float)
  solved = rng.integers(0, 9, (5, 30)) / 8
  for budget in (0.5, 2.0, 8.0):
    best = [
      max([s for c, s in zip(*q, strict=True) if c <= budget], default=0)
      for q in zip(costs, solved, strict=True)
    ]
    assert kinetics.coverage(costs, solved, budget) == np.mean(best)
  for cost, quality in zip(costs, solved, strict=True):
    points = list(zip(cost, quality, strict=True))
    best = {
      (c, q)
      for c, q in points
      if not any(
        c2 <= c and q2 >= q and (c2, q2) != (c, q) for c2, q2 in points
      )
    }
    found = kinetics.frontier(cost, quality)
    assert len(found) == len(best)
    assert {points[i] for i in found} == best
    assert (np.diff(cost[found]) > 0).all()
