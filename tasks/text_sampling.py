"""Text that a language model goes on with, written as it comes."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import flax.linen as nn

from models import decoding

# Options of `write` for `sample.py`: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "prompt": ((), "The text to go on from; several are several rows."),
  "max_tokens": (
    0,
    "The most tokens to add; 0: 256, or as many as a model with learned "
    "positions has room for.",
  ),
  "temperature": (0.8, "0 takes the most probable token each time."),
  "top_k": (0, "Draw from the k most probable tokens; 0: from all."),
  "top_p": (1.0, "Draw from the most probable with this mass together."),
  "min_p": (0.0, "Draw from what has this part of the largest probability."),
  "seed": (0, "The same seed draws the same text."),
  "num_samples": (1, "How many continuations to write of each prompt."),
  "stop": ((), "A text before which a continuation ends."),
}
_MAX_TOKENS = 256


def write(
  model: nn.Module,
  variables: Mapping[str, Any],
  tokenizer: Any,
  *,
  prompt: str | Sequence[str] = "",
  max_tokens: int = 0,
  temperature: float = OPTIONS["temperature"][0],
  num_samples: int = 1,
  stop: str | Sequence[str] = (),
  output: TextIO | None = None,
  log: TextIO | None = None,
  **sampling: Any,
) -> None:
  """Writes a prompt and its continuation, and then how fast that was.

  Several follow one another, each with its prompt before it and an empty line
  between two. The first is written as it comes, the others once all have ended.

  Args:
    model: with the cache that `models.decoding` needs.
    variables: its variables.
    tokenizer: an `input_pipeline.text.tokenizers.Tokenizer`.
    prompt: one or more; an empty one is a text from its beginning.
    max_tokens: as in OPTIONS.
    temperature: as in OPTIONS.
    num_samples: as in OPTIONS.
    stop: texts before which a continuation ends.
    output: standard output if not given; nothing else is written there.
    log: standard error if not given.
    **sampling: top_k, top_p, min_p and seed.

  Raises:
    ValueError: as `models.decoding.stream`; a prompt that has no tokens.
  """
  output = sys.stdout if output is None else output
  if num_samples < 1:
    raise ValueError(f"{num_samples=} is not 1 or more.")
  prompts = [p for p in _several(prompt) or [""] for _ in range(num_samples)]
  rows = [encode(tokenizer, text) for text in prompts]
  stop = _several(stop)
  end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
  meter = _Meter()
  blocks = decoding.stream(
    model,
    variables,
    rows,
    max_tokens=max_tokens or fitting_tokens(model, max(map(len, rows))),
    stop=[*stop, *end],
    decode=tokenizer.decode,
    temperature=temperature,
    **sampling,
  )
  output.write(prompts[0])
  output.flush()
  later = prompts[1:]
  for first, *others in texts(tokenizer, rows, meter.counted(blocks), stop):
    output.write(first)
    output.flush()
    later = [old + new for old, new in zip(later, others, strict=True)]
  for text in later:
    output.write(f"\n\n{text}")
  output.flush()
  print(f"\n{meter}", file=sys.stderr if log is None else log)


def _several(texts):
  return [texts] if isinstance(texts, str) else list(texts)


def encode(tokenizer: Any, prompt: str) -> list[int]:
  """The tokens of a prompt; an empty one is the end of a text before it.

  Raises:
    ValueError: the prompt has text that the tokenizer has no tokens for, or is
      empty and the tokenizer has no `end_of_text`.
  """
  try:
    tokens = tokenizer.encode(prompt)
  except ValueError as error:  # Of which a UnicodeError is one.
    raise ValueError(f"prompt={prompt!r} has no tokens: {error}") from error
  if len(tokens):
    return list(tokens)
  if tokenizer.end_of_text is None:
    raise ValueError(
      f"prompt={prompt!r} has no tokens, and the tokenizer has no end_of_text "
      "to begin with: give a prompt of a character or more."
    )
  return [tokenizer.end_of_text]


def fitting_tokens(model: nn.Module, prompt_length: int) -> int:
  """256, or what is left of learned positions after a prompt, at least 1."""
  if getattr(model, "position_encoding", None) != "learned":
    return _MAX_TOKENS
  return max(1, min(_MAX_TOKENS, model.max_length - prompt_length + 1))


def texts(
  tokenizer: Any,
  prompts: Sequence[Sequence[int]],
  blocks: Iterable[Sequence[Sequence[int]]],
  stop: Sequence[str] = (),
) -> Iterator[list[str]]:
  """Yields what is new of each row's text, for each block of tokens.

  A character that spans tokens comes when it is whole, and nothing comes of a
  text in `stop` or after it.

  Args:
    tokenizer: an `input_pipeline.text.tokenizers.Tokenizer`.
    prompts: a row of tokens each.
    blocks: new tokens of each row, as `models.decoding.stream` yields them.
    stop: texts that end a row.
  """
  rows = [list(prompt) for prompt in prompts]
  # Some tokenizers write a token otherwise where a text begins, so a
  # continuation is read behind its prompt.
  begins = [len(tokenizer.decode(row)) for row in rows]
  written = [""] * len(rows)

  def news(ended):
    for i, row in enumerate(rows):
      text = settled(tokenizer.decode(row)[begins[i] :], stop, ended=ended)
      yield text[len(written[i]) :]
      written[i] = text

  for block in blocks:
    for row, new in zip(rows, block, strict=True):
      row += new
    yield list(news(ended=False))
  yield list(news(ended=True))


def settled(text: str, stop: Sequence[str], *, ended: bool) -> str:
  """The part of a text that stays as it is, whatever tokens come after it."""
  cuts = [text.find(s) for s in stop if s in text]
  if cuts:
    return text[: min(cuts)]
  if ended:
    return text
  # Bytes of a character that is not whole yet read as this.
  text = text.rstrip("\ufffd")
  beginnings = (s[:n] for s in stop for n in range(1, len(s)))
  held = max((len(b) for b in beginnings if text.endswith(b)), default=0)
  return text[: len(text) - held]


class _Meter:
  """Counts tokens, and the time since the first block of them.

  That one takes longer: it waits for the compiler and for the prompt.
  """

  def __init__(self):
    self._began = self._last = time.perf_counter()
    self._first = None
    self._blocks = []

  def counted(self, blocks):
    """The same blocks."""
    for block in blocks:
      self._last = time.perf_counter()
      self._first = self._first or self._last
      self._blocks.append(sum(map(len, block)))
      yield block

  def __str__(self):
    first, *later = self._blocks
    before = self._first - self._began
    said = (
      f"{first + sum(later)} tokens: the first {first} after {before:.2f} s"
    )
    if not later:
      return said
    return (
      f"{said}, then {sum(later) / (self._last - self._first):.1f} tokens/s"
    )
