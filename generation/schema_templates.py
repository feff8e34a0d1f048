"""Skeletons of JSON with slots for values, to be written into an output.

Schema scaffolding (S^3, arXiv 2507.04504): what is known of the output is not
asked for but put there, and a model that sees both sides fills the slots. Slots
are longer than most values, so the rest is filled with a null, which the prompt
or the training has to explain.
"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

NULL = "<none>"


class Template(NamedTuple):
  """A skeleton.

  Attributes:
    tokens: int32 [length], the mask in slots.
    slot_mask: bool [length], where the slots are.
    segments: int32 [length], the number of a slot's field; -1 for the skeleton.
  """

  tokens: np.ndarray
  slot_mask: np.ndarray
  segments: np.ndarray


def build_template(
  fields: Sequence[str],
  budgets: int | Sequence[int],
  encode: Callable[[str], Sequence[int]],
  *,
  mask: int,
  fence: bool = False,
) -> Template:
  """Lays a flat record of strings out as JSON, a field a line.

  Each piece between slots is encoded by itself, as no tokenizer would do with
  the whole: a token may not reach into a slot.

  Args:
    fields: names of the record, which are escaped where JSON wants it.
    budgets: tokens of each field's slot, or one number for all.
    encode: from text to tokens, without tokens that begin or end a text.
    mask: the token that stands for what is to be filled in.
    fence: whether the JSON begins as a fenced block of Markdown does.

  Raises:
    ValueError: for no fields, two of one name, budgets that are not positive or
      not as many, or an encoding that has the mask.
  """
  if isinstance(fields, str) or len(set(fields)) < max(len(fields), 1):
    raise ValueError(
      f"fields={fields!r} must be one or more names, all of them different."
    )
  if isinstance(budgets, int):
    budgets = [budgets] * len(fields)
  if len(budgets) != len(fields) or min(budgets) < 1:
    raise ValueError(
      f"budgets={budgets!r} must have a number of tokens, 1 or more, for each "
      f"of {len(fields)} fields."
    )
  tokens, segments = [], []

  def add(new, number):
    tokens.extend(new)
    segments.extend([number] * len(new))

  add(encode("```json\n{\n" if fence else "{\n"), -1)
  for i, (name, budget) in enumerate(zip(fields, budgets, strict=True)):
    add(encode(f'  {json.dumps(name, ensure_ascii=False)}: "'), -1)
    add([mask] * budget, i)
    add(encode('",\n' if i + 1 < len(fields) else '"\n'), -1)
  add(encode("}"), -1)
  tokens, segments = np.array(tokens, np.int32), np.array(segments, np.int32)
  if (tokens[segments < 0] == mask).any():
    raise ValueError(f"{mask=} is a token of the skeleton's text too.")
  return Template(tokens, segments >= 0, segments)


def unfit_tokens(texts: Sequence[str]) -> tuple[int, ...]:
  """The tokens that must not be in a slot: quotes, newlines, and no text.

  Ours: the authors' code allows all, which is why not every output of theirs
  can be parsed. Here what JSON would have to escape is forbidden (a quote, a
  backslash, control characters), not escaped, as that takes tokens that a slot
  may not have; and special tokens, which would vanish from the text.

  Args:
    texts: what each token stands for, "" for a special one.
  """
  return tuple(
    token
    for token, text in enumerate(texts)
    if not text or json.dumps(text, ensure_ascii=False)[1:-1] != text
  )


def strip_null(value: str, null: str = NULL) -> str:
  """Drops the null words at the end of a value, and one that is cut off there.

  A part of a null word is one only behind a whole one or as the whole value:
  "a<b" may end as it does. Null words within a value stay.

  Raises:
    ValueError: for an empty null word.
  """
  if not null:
    raise ValueError("null='' has to be a word.")
  for kept in range(len(null) - 1, 0, -1):
    rest = value.removesuffix(null[:kept])
    if rest != value and (not rest or rest.endswith(null)):
      value = rest
      break
  while value.endswith(null):
    value = value.removesuffix(null)
  return value
