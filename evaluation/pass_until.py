"""Samples each item until some samples pass, or until there were too many.

PassUntil of "Predicting Emergent Abilities with Infinite Resolution Evaluation"
(arXiv 2310.03262). What the counts say is in `evaluation.pass_rates`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from evaluation import pass_rates
from models import decoding

# Row numbers are int32 in `models.decoding`.
_ROWS = 2**31

# From numbers of items and as many numbers of samples to a sample of each: the
# sample of a pair of numbers is always the same, and all are independent.
Sample = Callable[[np.ndarray, np.ndarray], Sequence[Any]]


def sample_until(
  sample: Sample,
  passes: Callable[[int, Any], bool],
  items: int,
  *,
  wanted: int = 2,
  cap: int = 100_000,
  batch: int = 256,
) -> pass_rates.Counts:
  """Draws samples of each item until `wanted` passed or `cap` were drawn.

  Samples come in batches that live items share, all of the same size, so what
  is drawn after an item's last pass is thrown away: it must not count. Counts
  do not depend on `batch`.

  Args:
    sample: gives of `batch` numbers of items, and of `batch` numbers of their
      samples from 0, as many samples.
    passes: says of an item's number and a sample whether it is right.
    items: how many there are.
    wanted: passes that stop an item, r; more than `cap` for exactly `cap`
      samples of each, of which `pass_rates.maximum_likelihood` is pass@1.
    cap: samples that stop an item.
    batch: samples of a call of `sample`.

  Raises:
    ValueError: for a number below 1, or another number of samples than asked.
  """
  for name, value in (
    ("items", items),
    ("wanted", wanted),
    ("cap", cap),
    ("batch", batch),
  ):
    if value != int(value) or value < 1:
      raise ValueError(f"{name}={value} is not an integer that is 1 or more.")
  passed = np.zeros(items, np.int64)
  drawn = np.zeros(items, np.int64)
  while True:
    live = np.flatnonzero((passed < wanted) & (drawn < cap))
    if not live.size:
      return pass_rates.Counts(passed, drawn, wanted, cap)
    which, numbers = _shares(live, drawn, cap, batch)
    made = sample(which, numbers)
    if len(made) != batch:
      raise ValueError(f"sample gave {len(made)} samples, but {batch=}.")
    for item, number, text in zip(which, numbers, made, strict=True):
      # Numbers beyond the cap fill the batch.
      if passed[item] < wanted and number < cap:
        drawn[item] += 1
        passed[item] += bool(passes(int(item), text))


def sampler(
  model: nn.Module,
  variables: Mapping[str, Any],
  prompts: Sequence[Sequence[int]],
  decode: Callable[[list[int]], Any],
  *,
  max_tokens: int,
  cap: int,
  temperature: float = 1.0,
  **options: Any,
) -> Sample:
  """A `sample` for `sample_until`, of a language model of ours.

  Sample n of item i has row number i * cap + n and the seed of all, so it is
  the same whatever it shares a batch with, but for the rounding of other batch
  sizes.

  Args:
    model: with a cache; see `models.decoding`.
    variables: its variables.
    prompts: the tokens of each item's.
    decode: from new tokens, a stop token among them, to what `passes` sees.
    max_tokens: the most to add.
    cap: of `sample_until`.
    temperature: above 0; the law is of 1, with top_k, top_p and min_p off.
    **options: of `models.decoding.generate`, as seed, stop, block.

  Raises:
    ValueError: for a temperature of 0, whose samples would all be one, for
      more samples than there are row numbers, or as `generate`.
  """
  if not temperature > 0:
    raise ValueError(
      f"{temperature=} gives one sample again and again; it must be above 0."
    )
  if len(prompts) * cap > _ROWS:
    raise ValueError(
      f"{len(prompts)} prompts and {cap=} need {len(prompts) * cap} numbers of "
      f"rows, but there are {_ROWS}: cap={_ROWS // len(prompts)} would fit."
    )

  def sample(which, numbers):
    rows = decoding.generate(
      model,
      variables,
      [prompts[item] for item in which],
      max_tokens=max_tokens,
      temperature=temperature,
      # Past the cap is another item's, and thrown away.
      rows=(which * cap + numbers) % _ROWS,
      **options,
    )
    return [decode(row) for row in rows]

  return sample


def pass_until(
  model: nn.Module,
  variables: Mapping[str, Any],
  prompts: Sequence[Sequence[int]],
  passes: Callable[[int, Any], bool],
  decode: Callable[[list[int]], Any],
  *,
  max_tokens: int,
  wanted: int = 2,
  cap: int = 100_000,
  batch: int = 256,
  **options: Any,
) -> pass_rates.Counts:
  """Samples a language model of ours until it passes; see `sampler`.

  Args:
    model: with a cache; see `models.decoding`.
    variables: its variables.
    prompts: the tokens of each item's.
    passes: says of an item's number and what `decode` gave whether it is right.
    decode: from new tokens, a stop token among them, to what `passes` sees.
    max_tokens: the most to add.
    wanted: see `sample_until`, as the next two.
    cap: samples that stop an item.
    batch: rows of a call of the model.
    **options: temperature, and those of `models.decoding.generate`.

  Raises:
    ValueError: as `sampler` and `sample_until`.
  """
  drawing = sampler(
    model,
    variables,
    prompts,
    decode,
    max_tokens=max_tokens,
    cap=cap,
    **options,
  )
  return sample_until(
    drawing, passes, len(prompts), wanted=wanted, cap=cap, batch=batch
  )


def _shares(live, drawn, cap, batch) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of items and of their next samples, `batch` of them.

  Turns go round live items, so that shares differ by one at most.
  """
  turns = np.arange(batch)
  which = live[turns % live.size]
  return which, drawn[which] + turns // live.size
