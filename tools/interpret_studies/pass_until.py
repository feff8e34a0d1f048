"""PassUntil: seven small models, of which the largest is predicted."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

import storage
from configs import sequences
from evaluation import answer_loss, pass_rates, pass_until, scaling_law
from input_pipeline.sequences import sources
from models import decoding
from tools import plain_training, study

TITLE = "PassUntil (2310.03262)"
TEXT = """\
Seven language models of two layers say strings of six symbols backwards, all
trained alike in 200 steps of 64 strings. There is one right answer, so the
probability of passing is known by teacher forcing: "exact", its mean over 40
items. Items are sampled at temperature 1 until two samples pass, at most 20,000
times; "unbiased" is the mean of our estimator with its 95% interval,
"likelihood" that of r / K for r = 2 and, in samples of their own, r = 1, which
is too large where few pass. Controls: the share of items that the most probable
answer gets right, and of 100 samples of each.

Rows below predict the largest model from the six others by a line of
log(-log PU) in log N, N without embeddings: from each estimate, all with the
median of the six relative errors; from the exact values, which have none; and
from a line for each item, fitted by the likelihood of its counts. To be
compared with "exact" in the same row; "quadratic" is the curvature of the six
in log N with its standard error: where it is not zero there is no line to go on
with, and no claim. An empty cell is of a model that never passed, or always.
Agreement of a likelihood's prediction with the likelihood's value of the
largest model would say nothing: both are too large.
"""
COLUMNS = (
  ("parameters", ",.0f"),
  ("greedy", ".1%"),
  ("pass_at_1", ".2%"),
  ("exact", ".3g"),
  ("unbiased", ".3g"),
  ("predicted", ".3g"),
  ("low", ".3g"),
  ("high", ".3g"),
  ("likelihood_2", ".3g"),
  ("likelihood_1", ".3g"),
  ("quadratic", "+.3f"),
  ("quadratic_error", ".3f"),
  ("samples", ",.0f"),
)
WIDTHS = (16, 24, 32, 40, 56, 72, 96)
# By which figure of the smaller models the largest is predicted.
KINDS = ("exact", "unbiased", "likelihood_2", "likelihood_1", "items")
# Steps, items, cap, rows of a batch, and samples of pass@1.
_SIZES = {"full": (200, 40, 20_000, 1024, 100), "test": (1, 3, 8, 8, 4)}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The models, and the predictions of the last; of a test, one model."""
  if variant == "test":
    return [("width 8", {"width": 8})]
  models = [(f"width {width}", {"width": width}) for width in WIDTHS]
  named = "width {}, predicted: {}"
  predicted = [
    (named.format(WIDTHS[-1], kind.replace("_", " ")), {"kind": kind})
    for kind in KINDS
  ]
  return models + predicted


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Samples a model, or predicts the largest from what others gave.

  Args:
    folder: of what rows share: models, and what was sampled of them.
    name: of the row.
    options: the width of a model, or the kind of a prediction.
    seed: of training and sampling.
    variant: "full" or "test".

  Returns:
    Some of what COLUMNS names.
  """
  del name
  if "width" in options:
    return figures(_sampled(folder, options["width"], seed, variant))
  sampled = [_sampled(folder, width, seed, variant) for width in WIDTHS]
  return prediction(sampled, options["kind"])


def figures(sampled: Mapping[str, Any]) -> dict[str, float]:
  """The row of a model.

  Args:
    sampled: what `_sampled` gives.
  """
  mean = pass_rates.mean(_counts(sampled["two"]))
  return {
    "parameters": sampled["parameters"],
    "greedy": sampled["greedy"],
    "pass_at_1": _likelihood(sampled["fixed"]),
    "exact": float(np.mean(sampled["exact"])),
    "unbiased": mean.estimate,
    "low": mean.low,
    "high": mean.high,
    "likelihood_2": _likelihood(sampled["two"]),
    "likelihood_1": _likelihood(sampled["one"]),
    "samples": float(np.sum(sampled["two"][1])),
  }


def prediction(
  sampled: Sequence[Mapping[str, Any]], kind: str
) -> dict[str, float]:
  """The largest model as the others predict it.

  Args:
    sampled: of each model, the largest last.
    kind: of `KINDS`.
  """
  *smaller, largest = sampled
  sizes = np.array([each["parameters"] for each in smaller])
  size = largest["parameters"]
  found = {"parameters": size, "exact": float(np.mean(largest["exact"]))}
  if kind == "items":
    laws = scaling_law.fit_items(
      sizes, [_counts(each["two"]) for each in smaller]
    )
    rates = scaling_law.predict_items(*laws, size)
    # One that never passed is taken for one that never will.
    return {**found, "predicted": float(np.nan_to_num(rates).mean())}
  means = [pass_rates.mean(_counts(each["two"])) for each in smaller]
  rates = np.array([figures(each)[kind] for each in smaller])
  if not ((rates > 0) & (rates < 1)).all():
    return found
  errors = None
  if kind != "exact":
    # With two passes an error is small where the estimate is large by chance,
    # so no model has its own; and of all estimates those of the one.
    known = [each.error / each.estimate for each in means if each.estimate]
    errors = rates * np.median(known)
  law = scaling_law.fit(sizes, rates, errors)
  shape = scaling_law.curve_shape(sizes, rates, errors)
  predicted = scaling_law.predict(law, size)
  return {
    **found,
    "predicted": predicted.estimate,
    "low": predicted.low,
    "high": predicted.high,
    "quadratic": shape.quadratic,
    "quadratic_error": shape.error,
  }


def make_config(
  width: int, seed: int, variant: str
) -> ml_collections.ConfigDict:
  """The run of a model."""
  config = sequences.get_config("reversal")
  config.model.update(dict(width=width, heads=width // 8, mlp_width=2 * width))
  config.train_for = f"{_SIZES[variant][0]} steps"
  config.seed = seed
  if variant == "test":
    config.model.depth = 1
    config.batch_size = 4
  return config


def _sampled(
  folder: epath.Path, width: int, seed: int, variant: str
) -> dict[str, Any]:
  """What is known of a model's items, in numbers and lists of numbers."""
  own = folder / "pass_until"
  config = make_config(width, seed, variant)
  # Of other models or sizes what is there says nothing.
  sizes = "_".join(map(str, _SIZES[variant]))
  path = own / f"{study.digest(config)}_{sizes}.json"
  if not path.exists():
    task, variables = plain_training.trained(config, own)
    made = _sample(task, variables, seed, _SIZES[variant])
    storage.write_whole(path, json.dumps(made))
  return json.loads(path.read_text())


def _sample(task, variables, seed, sizes) -> dict[str, Any]:
  _, items, cap, batch, fixed = sizes
  prompts, answers = _items(items, seed)

  def sampled(wanted, cap, draws):
    counts = pass_until.pass_until(
      task.model,
      variables,
      prompts,
      lambda item, tokens: tokens == answers[item],
      decode=lambda tokens: tokens,
      max_tokens=len(answers[0]),
      cache_length=2 * len(prompts[0]),
      wanted=wanted,
      cap=cap,
      batch=batch,
      # Each its own, so that no figure is of another's samples.
      seed=10 * seed + draws,
    )
    return [counts.passes.tolist(), counts.samples.tolist(), wanted, cap]

  greedy = decoding.generate(
    task.model, variables, prompts, max_tokens=len(answers[0])
  )
  exact = answer_loss.log_probabilities(task.model, variables, prompts, answers)
  leaves = jax.tree.leaves(variables["params"])
  embedding = variables["params"]["embed"]["embedding"].size
  return {
    "parameters": float(sum(leaf.size for leaf in leaves) - embedding),
    "greedy": float(
      np.mean([a == b for a, b in zip(greedy, answers, strict=True)])
    ),
    "exact": np.exp(exact).tolist(),
    "two": sampled(2, cap, 0),
    "one": sampled(1, cap, 1),
    "fixed": sampled(fixed + 1, fixed, 2),
  }


def _items(count: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
  """Prompts and answers, of strings that training has only by chance."""
  source = sources.create("reversal", {})
  rng = np.random.default_rng((seed, count))
  prompts, answers = [], []
  for _ in range(count):
    example = source.example(rng, "eval")
    whole = [*example["tokens"].tolist(), int(example["targets"][-1])]
    prompts.append(whole[: source.length + 1])
    answers.append(whole[source.length + 1 :])
  return prompts, answers


def _counts(kept: Sequence[Any]) -> pass_rates.Counts:
  passes, samples, wanted, cap = kept
  return pass_rates.Counts(np.array(passes), np.array(samples), wanted, cap)


def _likelihood(kept: Sequence[Any]) -> float:
  return float(pass_rates.maximum_likelihood(_counts(kept)).mean())
