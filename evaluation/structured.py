"""Measures of flat records that a model wrote as JSON, with their sources.

The measures of schema scaffolding (arXiv 2507.04504), whose text names them and
gives no rules of matching; the rules are ours. Values are compared casefolded,
with runs of spaces as one. An exact match is equality, a fuzzy one an F1 of
words of at least a half. A value is hallucinated if the source does not have it
as a substring, so one that is rightly inferred counts as hallucinated.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from generation import schema_templates

_FENCE = "```"
_FUZZY = 0.5


class Parsed(NamedTuple):
  """What an output says.

  Attributes:
    valid: whether it is JSON.
    adherent: whether it is an object with the fields of the schema, each once,
      no others, and all of them strings.
    values: the strings that it has, without nulls and empty ones, also under
      names that the schema lacks; of a name that comes twice, the last.
  """

  valid: bool
  adherent: bool
  values: Mapping[str, str]


def structured_scores(
  predictions: Sequence[str],
  golds: Sequence[Mapping[str, str]],
  sources: Sequence[str],
  fields: Sequence[str],
  *,
  required: Sequence[str] | None = None,
  null: str = schema_templates.NULL,
) -> dict[str, float]:
  """Scores outputs.

  Args:
    predictions: texts that models wrote; a Markdown fence around JSON is
      dropped, other text around it is not.
    golds: of each, the value of each field; "" where there is none.
    sources: of each, what its values are to be taken from.
    fields: names that the schema has, no others.
    required: names that must be filled; None for those that a gold record
      fills.
    null: a word that stands for no value, dropped at the end of values.

  Returns:
    structure_validity: share of outputs that are JSON (SV).
    field_completeness: share with all required fields, filled (FC).
    schema_compliance: share that adhere to the schema (SC).
    precision, recall, f1: of filled fields over all records, by exact match;
    fuzzy_precision, fuzzy_recall, fuzzy_f1: by fuzzy match. Those without a
      denominator are 0.
    hallucination_rate: share of filled fields whose value its source does not
      have (HR); 0 if none is filled.

  Raises:
    ValueError: for lists of different lengths or none, or names in golds or
      `required` that `fields` lacks.
  """
  _check(predictions, golds, sources, fields, required)
  sums = collections.Counter()
  for text, gold, source in zip(predictions, golds, sources, strict=True):
    parsed = parse(text, fields, null)
    gold = {name: value for name, value in gold.items() if normalized(value)}
    needed = gold if required is None else required
    sums["valid"] += parsed.valid
    sums["adherent"] += parsed.adherent
    sums["complete"] += parsed.valid and set(needed) <= set(parsed.values)
    sums["told"] += len(parsed.values)
    sums["gold"] += len(gold)
    source = normalized(source)
    for name, value in parsed.values.items():
      sums["invented"] += normalized(value) not in source
      if name in gold:
        sums["exact"] += normalized(value) == normalized(gold[name])
        sums["fuzzy"] += word_f1(value, gold[name]) >= _FUZZY
  count = len(predictions)
  return {
    "structure_validity": sums["valid"] / count,
    "field_completeness": sums["complete"] / count,
    "schema_compliance": sums["adherent"] / count,
    **_agreement(sums["exact"], sums["told"], sums["gold"]),
    **_agreement(sums["fuzzy"], sums["told"], sums["gold"], "fuzzy_"),
    "hallucination_rate": _share(sums["invented"], sums["told"]),
  }


def parse(
  text: str, fields: Sequence[str], null: str = schema_templates.NULL
) -> Parsed:
  """Reads an output; what is no JSON has no values."""
  try:
    found = json.loads(
      _unfenced(text), object_pairs_hook=_Pairs, parse_constant=_refuse
    )
  except (ValueError, RecursionError):
    return Parsed(valid=False, adherent=False, values={})
  if not isinstance(found, _Pairs):
    return Parsed(valid=True, adherent=False, values={})
  names = [name for name, _ in found]
  strings = {n: value for n, value in found if isinstance(value, str)}
  values = {
    name: schema_templates.strip_null(value, null)
    for name, value in strings.items()
  }
  return Parsed(
    valid=True,
    adherent=sorted(names) == sorted(fields) == sorted(strings),
    values={n: value for n, value in values.items() if normalized(value)},
  )


class _Pairs(list):
  """An object of JSON, with names that come twice."""


def _refuse(constant: str) -> Any:
  """NaN and infinities are not JSON, though `json` reads them."""
  raise ValueError(constant)


def _unfenced(text: str) -> str:
  """The inside of a fenced block of Markdown, or the text."""
  text = text.strip()
  if text.startswith(_FENCE) and "\n" in text:
    text = text.partition("\n")[2].removesuffix(_FENCE)
  return text


def normalized(value: str) -> str:
  """Casefolded, with single spaces, and none at the ends."""
  return " ".join(value.casefold().split())


def word_f1(one: str, other: str) -> float:
  """The harmonic mean of the shares of words that each has of the other's."""
  words, others = normalized(one).split(), normalized(other).split()
  common = collections.Counter(words) & collections.Counter(others)
  return _share(2 * common.total(), len(words) + len(others))


def _agreement(right, told, gold, prefix="") -> dict[str, float]:
  return {
    f"{prefix}precision": _share(right, told),
    f"{prefix}recall": _share(right, gold),
    f"{prefix}f1": _share(2 * right, told + gold),
  }


def _share(part: int, whole: int) -> float:
  return part / whole if whole else 0.0


def _check(predictions, golds, sources, fields, required) -> None:
  lengths = len(predictions), len(golds), len(sources)
  if len(set(lengths)) > 1 or not lengths[0]:
    raise ValueError(
      f"predictions, golds and sources are {lengths[0]}, {lengths[1]} and "
      f"{lengths[2]}; they must be as many, and one or more."
    )
  named = {"required": set(required or ()), "golds": set().union(*golds)}
  for argument, names in named.items():
    if unknown := sorted(names - set(fields)):
      raise ValueError(
        f"{argument} has {', '.join(unknown)}, which fields={list(fields)} "
        "lacks."
      )
