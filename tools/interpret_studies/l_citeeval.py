"""L-CiteEval: a small model that answers and cites what it did not read."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from etils import epath

from configs import sequences
from evaluation import citation_attention, citations
from input_pipeline.sequences import cited_facts
from models import decoding
from tools import plain_training

TITLE = "L-CiteEval (2410.02115)"
TEXT = """\
A language model of words, two layers of short convolutions and two of
attention, reads 4, 8 or 16 passages, each of a key, a value and its number, and
answers questions by a value and the number of its passage, as "v17 [3]". The
values of half of the keys never change in training and can be known by heart;
those of the others are new in each context. It is asked for "fresh" and
"constant" keys, for constant ones whose passage says another value
("contradicted": right is what the passage says), and for constant ones without
their passage ("removed": right is what it was, and no citation can be). "By
heart" is how often a constant key gets the value of training. The verifier is
exact: a passage entails an answer if it has its key and its value. The claim is
that accuracy says too much where a value is known by heart, that citations
tell, and that they fall with length before accuracy does.

Attention is that of all layers and heads where the number is written, at keys
of passages: "agreement" is how often the right passage has the largest weight
and is cited, or neither; correlations are over pairs of an answer and a
passage, for the largest weight of all heads, for the head in which it is
largest, and for the same choice of a head with the citations of other answers;
"at value" is the same one token before, where the value is written, for a layer
may have found the number by then. Controls of citations: the same answers with
a passage at random, all passages (of which the first three count), and the one
that shares most words with key and answer.
"""
COLUMNS = (
  ("accuracy", ".1%"),
  ("by_heart", ".1%"),
  ("recall", ".1%"),
  ("precision", ".1%"),
  ("f1", ".1%"),
  ("citations", ".2f"),
  ("agreement", ".1%"),
  ("correlation", ".2f"),
  ("of_best_head", ".2f"),
  ("shuffled", ".2f"),
  ("at_value", ".2f"),
  ("at_value_shuffled", ".2f"),
)
CONDITIONS = ("fresh", "constant", "contradicted", "removed")
CONTROLS = ("random", "all", "best match")
_COUNTS = (4, 8, 16)
# Steps, questions of a row.
_SIZES = {"full": (600, 200), "test": (1, 4)}


class Case(NamedTuple):
  """A question with its context.

  Attributes:
    keys: of the passages, in order.
    values: of the passages.
    asked: the key that is asked for.
    right: the value that is right.
    known: the value of training, None for a fresh key.
  """

  keys: list[int]
  values: list[int]
  asked: int
  right: int
  known: int | None

  @property
  def passages(self) -> list[int]:
    """Numbers of the passages on the key that is asked for: one or none."""
    return [n for n, key in enumerate(self.keys, 1) if key == self.asked]


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """Conditions by numbers of passages, and the controls; of a test, one."""
  if variant == "test":
    return [("contradicted, 4 passages", _row("contradicted", 4))]
  made = [
    (f"{condition}, {count} passages", _row(condition, count))
    for condition in CONDITIONS
    for count in _COUNTS
  ]
  return made + [
    (f"fresh, 16 passages, cited: {how}", _row("fresh", 16, how))
    for how in CONTROLS
  ]


def _row(condition: str, count: int, how: str = "") -> dict[str, Any]:
  return {"condition": condition, "count": count, "how": how}


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains the model of a seed if it is not there, and asks it.

  Args:
    folder: of what rows share: the models.
    name: of the row.
    options: condition, count of passages, and how citations are replaced.
    seed: of the training and of the questions.
    variant: "full" or "test".

  Returns:
    What COLUMNS names, but for what a row does not have.
  """
  del name
  config = make_config(seed, variant)
  task, variables = plain_training.trained(config, folder / "l_citeeval")
  source = cited_facts.CitedFacts(**config.data.options)
  condition, count, how = (options[n] for n in ("condition", "count", "how"))
  rng = np.random.default_rng((seed, count, CONDITIONS.index(condition)))
  cases = [
    case(source, rng, condition, count) for _ in range(_SIZES[variant][1])
  ]
  prompts = [
    source.context(each.keys, each.values) + source.question(each.asked)
    for each in cases
  ]
  answers = decoding.generate(
    task.model, variables, prompts, max_tokens=3, stop=cited_facts.END
  )
  texts = [source.text(answer) for answer in answers]
  if how:
    texts = [
      citations.remove_citations(text) + recited(how, rng, each, text)
      for each, text in zip(cases, texts, strict=True)
    ]
  found = judged(cases, texts)
  if not how:
    # Where the value is written, and behind it the number of its passage.
    whole = np.array(
      [p + (a + [0] * 3)[:3] for p, a in zip(prompts, answers, strict=True)]
    )
    queries = np.tile([[len(prompts[0]) - 1, len(prompts[0])]], (len(cases), 1))
    weights = citation_attention.citation_maps(
      task.model, variables, whole, queries
    )
    found |= attended(weights, cases, texts, rng)
  return found


def case(
  source: cited_facts.CitedFacts,
  rng: np.random.Generator,
  condition: str,
  count: int,
) -> Case:
  """Draws a question with `count` passages.

  Args:
    source: has the constant values.
    rng: decides all that is random.
    condition: of `CONDITIONS`.
    count: of passages.
  """
  half = source.keys // 2
  asked = int(rng.integers(half))
  if condition == "fresh":
    asked += half
  others = [key for key in range(source.keys) if key != asked]
  keys = rng.choice(others, count, replace=False)
  place = int(rng.integers(count))
  if condition != "removed":
    keys[place] = asked
  values = source.values_of(rng, keys)
  known = None if condition == "fresh" else int(source.constants[asked])
  if condition == "contradicted":
    # Any other.
    values[place] = (known + rng.integers(1, source.values)) % source.values
  right = known if condition == "removed" else int(values[place])
  return Case(keys.tolist(), values.tolist(), asked, right, known)


def recited(how: str, rng: np.random.Generator, case: Case, answer: str) -> str:
  """The citations of a control, with a space before them.

  Args:
    how: of `CONTROLS`.
    rng: decides which passage is cited at random.
    case: of the question.
    answer: its text.
  """
  count = len(case.keys)
  if how == "all":
    numbers = range(1, count + 1)
  elif how == "random":
    numbers = [int(rng.integers(1, count + 1))]
  else:
    words = {f"k{case.asked}", *citations.remove_citations(answer).split()}
    shared = [len(words & set(text.split())) for text in passages_of(case)]
    numbers = [int(np.argmax(shared)) + 1]
  return " " + "".join(f"[{n}]" for n in numbers)


def passages_of(case: Case) -> list[str]:
  """The text of each passage."""
  pairs = zip(case.keys, case.values, strict=True)
  return [f"k{key} v{value}" for key, value in pairs]


def entails(premise: str, claim: str) -> bool:
  """Whether one passage of the premise has all words of the claim."""
  words = set(claim.split())
  return any(words <= set(line.split()) for line in premise.splitlines())


def judged(cases: Sequence[Case], texts: Sequence[str]) -> dict[str, float]:
  """What answers say and cite.

  Args:
    cases: the questions.
    texts: an answer each.
  """
  said = [citations.remove_citations(text).strip() for text in texts]
  pairs = list(zip(cases, said, strict=True))
  scores = citations.mean(
    [
      citations.citation_scores(
        # An answer alone is no sentence.
        [f"k{each.asked} {text}"],
        [citations.passage_text(passage) for passage in passages_of(each)],
        entails,
      )
      for each, text in zip(cases, texts, strict=True)
    ]
  )
  found = {
    "accuracy": float(np.mean([text == f"v{c.right}" for c, text in pairs])),
    **scores._asdict(),
  }
  if cases[0].known is not None:
    known = [text == f"v{c.known}" for c, text in pairs]
    found["by_heart"] = float(np.mean(known))
  return found


def attended(
  weights: np.ndarray,
  cases: Sequence[Case],
  texts: Sequence[str],
  rng: np.random.Generator,
) -> dict[str, float]:
  """Whether the passages that are looked at are those that are cited.

  Args:
    weights: [questions, heads, 2, length], where the value is written and
      where the number is.
    cases: the questions.
    texts: the answers.
    rng: shuffles citations.
  """
  count = len(cases[0].keys)
  numbers = np.zeros((len(cases), weights.shape[-1]), np.int32)
  size = cited_facts.PASSAGE
  numbers[:, : size * count] = np.repeat(np.arange(1, count + 1), size)
  compare = functools.partial(
    citation_attention.retrieval_agreement,
    passages=numbers,
    right=[each.passages for each in cases],
  )
  cited = [citations.parse_citations(text) for text in texts]
  shuffled = [cited[i] for i in rng.permutation(len(cited))]
  value, number = weights[:, :, :1], weights[:, :, 1:]
  whole = compare(number, cited=cited)
  found = {"correlation": whole.correlation}
  # Without a right passage there is nothing to agree on.
  if cases[0].passages:
    found["agreement"] = whole.agreement
  for name, by, where in (
    ("of_best_head", cited, number),
    ("shuffled", shuffled, number),
    ("at_value", cited, value),
    ("at_value_shuffled", shuffled, value),
  ):
    heads = [
      compare(where[:, head : head + 1], cited=by).correlation
      for head in range(weights.shape[1])
    ]
    found[name] = max((r for r in heads if np.isfinite(r)), default=np.nan)
  return {name: r for name, r in found.items() if np.isfinite(r)}


def make_config(seed: int, variant: str) -> ml_collections.ConfigDict:
  """The run of a seed."""
  config = sequences.get_config("cited_facts")
  config.data.options.update(passages=(4, 16), keys=32, values=32)
  config.train_for = f"{_SIZES[variant][0]} steps"
  config.seed = seed
  if variant == "test":
    config.data.options.passages = (4, 8)
    config.model.update(dict(width=16, depth=2, heads=2, mlp_width=16))
    config.batch_size = 4
  return config
