"""Prints what decoding costs by the cost model of Kinetics (arXiv 2506.05333).

  python -m tools.kinetics --prompt=1024 --generated=32768 --trials=1

Reading the cache of keys and values counts as well as arithmetic: eFLOPs are
operations and the bytes of the cache times what a chip computes while it reads
a byte. The weights are read for so large a batch that their traffic counts for
nothing. For each model: operations, and bytes times the intensity, in Tera, of
dense attention, of top-k, and of blocks chosen by their mean key.
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# 4500 TFLOP/s over 8 TB/s, such as a B200's in FP8.
INTENSITY = 562.5
# Tokens of a block and blocks; as many tokens for top-k.
BLOCK, BLOCKS = 16, 64
SUMS = ("exact", "closed", "published")


class Model(NamedTuple):
  """What the cost of a model follows from.

  Attributes:
    parameters: those that are used for a token.
    layers: of attention.
    heads: query heads of a layer.
    kv_heads: heads of keys and values.
    head_dim: channels of a head.
  """

  parameters: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int = 128

  @property
  def query_channels(self) -> int:
    """Of all layers."""
    return self.layers * self.heads * self.head_dim

  @property
  def key_channels(self) -> int:
    """Of all layers."""
    return self.layers * self.kv_heads * self.head_dim


# Qwen3's: parameters from the paper's code, heads from the models' configs.
MODELS = {
  "Qwen3-0.6B": Model(752_000_000, 28, 16, 8),
  "Qwen3-1.7B": Model(2_030_000_000, 28, 16, 8),
  "Qwen3-4B": Model(4_020_000_000, 36, 32, 8),
  "Qwen3-8B": Model(8_190_000_000, 36, 32, 8),
  "Qwen3-14B": Model(14_770_000_000, 40, 40, 8),
  "Qwen3-32B": Model(32_760_000_000, 64, 64, 8),
}


class Cost(NamedTuple):
  """Of an answer, all trials together.

  Attributes:
    flops: operations.
    bytes: of keys and values that are read, two each (bfloat16).
  """

  flops: int
  bytes: int

  def equivalent_flops(self, intensity: float = INTENSITY) -> float:
    """eFLOPs: operations and those that a chip could do while it reads."""
    return self.flops + intensity * self.bytes


def dense(model: Model, prompt: int, generated: int, trials: int = 1) -> Cost:
  """Returns the cost of dense attention.

  Args:
    model: what decodes.
    prompt: tokens of the prompt, whose cache all trials share.
    generated: tokens of each trial.
    trials: how many.
  """
  pairs = (2 * prompt + generated) * generated
  linear = 2 * model.parameters * generated
  return Cost(
    (linear + 2 * pairs * model.query_channels) * trials,
    2 * (2 * prompt + trials * generated) * generated * model.key_channels,
  )


def top_k(
  model: Model,
  prompt: int,
  generated: int,
  trials: int = 1,
  *,
  budget: int,
  total: str = "exact",
) -> Cost:
  """Returns the cost of attention to `budget` tokens, to find them for nothing.

  Args:
    model: what decodes.
    prompt: tokens of the prompt; trials do not share it, as each sees others.
    generated: tokens of each trial.
    trials: how many.
    budget: tokens that each sees at most.
    total: see `seen_tokens`.
  """
  seen = seen_tokens(prompt, generated, budget, total)
  linear = 2 * model.parameters * generated
  return Cost(
    _whole((linear + 4 * seen * model.query_channels) * trials),
    _whole(4 * seen * model.key_channels * trials),
  )


def block_top_k(
  model: Model,
  prompt: int,
  generated: int,
  trials: int = 1,
  *,
  block: int,
  blocks: int,
  local: int = 0,
  total: str = "exact",
) -> Cost:
  """Returns the cost of attention to blocks, chosen by their mean keys.

  Args:
    model: what decodes.
    prompt: tokens of the prompt.
    generated: tokens of each trial.
    trials: how many.
    block: tokens of a block.
    blocks: how many are seen.
    local: last tokens that are seen besides.
    total: see `seen_tokens`.
  """
  found = top_k(
    model,
    prompt,
    generated,
    trials,
    budget=local + block * blocks,
    total=total,
  )
  means = (2 * prompt + generated) // block
  read = (2 * prompt + trials * generated) // block
  return Cost(
    found.flops + means * generated * model.query_channels * trials,
    found.bytes + read * generated * model.key_channels,
  )


def seen_tokens(
  prompt: int, generated: int, budget: int, total: str = "exact"
) -> float:
  """Returns the sum of min(budget, prompt + t) over t from 0 to generated - 1.

  Args:
    prompt: tokens before the first.
    generated: tokens.
    budget: tokens that each sees at most.
    total: "exact"; "closed", the paper's form, which is a half for each token
      below the budget off, and wrong where the budget is never reached; or
      "published", that of the paper's code for top-k, with the other sign.

  Raises:
    ValueError: if `total` is none of these.
  """
  if total not in SUMS:
    raise ValueError(f"total is {total!r}; it must be one of {SUMS}")
  if total == "exact":
    below = min(max(0, budget - prompt), generated)
    rising = below * prompt + below * (below - 1) // 2
    return rising + (generated - below) * budget
  sign = -1 if total == "closed" else 1
  return budget * generated + sign * max(0, budget - prompt) ** 2 / 2


def pass_at(samples: int, correct: int, trials: int) -> float:
  """Returns the probability that of `trials` samples at least one is correct.

  Args:
    samples: how many there are.
    correct: how many of them are.
    trials: how many are drawn, each at most once.

  Raises:
    ValueError: if there are not as many samples.
  """
  if not 0 <= correct <= samples or not 1 <= trials <= samples:
    raise ValueError(
      f"samples is {samples}, correct {correct} and trials {trials}; correct "
      "must be from 0 to samples, and trials from 1"
    )
  wrong = math.comb(samples - correct, trials)
  return 1 - wrong / math.comb(samples, trials)


def coverage(costs: np.ndarray, solved: np.ndarray, budget: float) -> float:
  """Returns the mean over queries of the best that each can have for a budget.

  An oracle chooses for each query, as in the paper's frontiers.

  Args:
    costs: [queries, choices], of numbers of trials, lengths and budgets of
      attention, each the mean over the samples of a query.
    solved: [queries, choices], the probability that it is solved.
    budget: the most that a query may cost; one that has no such choice is not
      solved.
  """
  return float(np.where(costs <= budget, solved, 0.0).max(axis=1).mean())


def frontier(costs: np.ndarray, quality: np.ndarray) -> np.ndarray:
  """Returns which choices are Pareto-optimal, in the order of their costs.

  That is, no other is at least as good and costs no more, but one like it.

  Args:
    costs: [choices].
    quality: [choices], more is better.

  Returns:
    Integers: the first of those that are alike.
  """
  order = np.lexsort((-quality, costs))
  best = np.maximum.accumulate(quality[order])
  better = np.concatenate([[True], best[1:] > best[:-1]])
  return order[better]


def rows(prompt: int, generated: int, trials: int) -> list[list[str]]:
  """Returns the cells of the table: names and numbers in Tera."""
  table = []
  for name, model in MODELS.items():
    sizes = (model, prompt, generated, trials)
    costs = (
      dense(*sizes),
      top_k(*sizes, budget=BLOCK * BLOCKS),
      block_top_k(*sizes, block=BLOCK, blocks=BLOCKS),
    )
    table.append([name, *(_cell(cost) for cost in costs)])
  return table


def _cell(cost: Cost) -> str:
  return f"{cost.flops / 1e12:.2f}, {cost.bytes * INTENSITY / 1e12:.2f}"


def _whole(number: float) -> int:
  """Returns the integer that a sum with a half comes to, times its factor."""
  return round(number)


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  for name, default, text in (
    ("prompt", 1024, "tokens of the prompt"),
    ("generated", 32768, "tokens of each trial"),
    ("trials", 1, "answers to a prompt"),
  ):
    parser.add_argument(f"--{name}", type=int, default=default, help=text)
  flags = parser.parse_args(argv)
  for name, value in vars(flags).items():
    if value < 1:
      parser.error(f"--{name}={value} must be at least 1")
  tokens = BLOCK * BLOCKS
  header = ["model", "dense", f"top-{tokens}", f"{BLOCKS} blocks of {BLOCK}"]
  print("|", " | ".join(header), "|")
  print("|---" * len(header) + "|")
  for row in rows(flags.prompt, flags.generated, flags.trials):
    print("|", " | ".join(row), "|")


if __name__ == "__main__":
  main()
