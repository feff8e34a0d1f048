"""Records that a masked-diffusion model reads off sentences, as JSON."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from generation import schema_templates, template_decoding
from input_pipeline import stream
from input_pipeline.sequences import records, sources
from models import decoding

# Options of `write` for `sample.py`: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "prompt": (
    (),
    "A sentence such as 'p CAB,j D'; several are several records. None: "
    "some that were not trained on.",
  ),
  "scaffold": (True, "Give the skeleton of the JSON; otherwise all is masked."),
  "nulls": (True, "Ask for values that are filled up with nulls."),
  "order": ("commit", "Which tokens a step keeps: 'commit' or 'remask'."),
  "steps": (8, "Steps that tokens come in, at most."),
  "temperature": (0.0, "0 takes the most probable token each time."),
  "seed": (0, "The same seed draws the same tokens."),
}
_SHOWN = 3


def write(
  model: nn.Module,
  variables: Mapping[str, Any],
  source: records.Records,
  *,
  prompt: Sequence[str] = (),
  output: TextIO | None = None,
  **options: Any,
) -> None:
  """Writes sentences, each with its record, and an empty line between two.

  Args:
    model: a masked-diffusion model, whose last token is the mask.
    variables: its variables.
    source: of what it was trained on.
    prompt: sentences; some of the evaluation's if there are none.
    output: standard output if not given.
    **options: of `fill`.

  Raises:
    ValueError: as `fill`.
  """
  output = sys.stdout if output is None else output
  sentences = [prompt] if isinstance(prompt, str) else list(prompt)
  sentences = sentences or [r.sentence for r in unseen(source, _SHOWN)]
  texts, _ = fill(model, variables, source, sentences, **options)
  both = zip(sentences, texts, strict=True)
  output.write("\n\n".join(f"{said}\n{text}" for said, text in both) + "\n")


def unseen(source: records.Records, count: int) -> list[records.Record]:
  """The first records of the evaluation split."""
  numbers = ((stream.SPLITS["eval"], 0, index) for index in range(count))
  return [source.draw(np.random.default_rng(n)) for n in numbers]


def find_source(config: ml_collections.ConfigDict) -> records.Records:
  """The source of a run's evaluation.

  Raises:
    ValueError: if it has no records.
  """
  options = {**config.data.options.to_dict(), **config.data.eval_options}
  source = sources.create(config.data.source, options)
  if not isinstance(source, records.Records):
    raise ValueError(
      f"data.source is {config.data.source!r}, of which nothing is written; "
      "there are samples of 'records'."
    )
  return source


def fill(
  model: nn.Module,
  variables: Mapping[str, Any],
  source: records.Records,
  sentences: Sequence[str],
  *,
  scaffold: bool = True,
  nulls: bool = True,
  steps: int = 8,
  order: str = "commit",
  temperature: float = 0.0,
  seed: int = 0,
) -> tuple[list[str], int]:
  """Fills the records of sentences.

  With a skeleton quotes, newlines and what else JSON escapes are no tokens of
  values (`schema_templates.unfit_tokens`).

  Args:
    model: a masked-diffusion model, whose last token is the mask.
    variables: its variables.
    source: of what it was trained on.
    sentences: what the records are to be taken from.
    scaffold: whether the skeleton is given; otherwise all tokens are masked.
    nulls: whether the flag asks for values with nulls.
    steps: as those that follow, of `template_decoding.decode`.
    order: see there.
    temperature: see there.
    seed: of the noise.

  Returns:
    (texts, executed): what the model wrote, with nulls as
    `schema_templates.NULL`, and how many steps that took.

  Raises:
    ValueError: for a sentence or an option that does not fit.
  """
  # A config may have lists, which no jitted function is told apart by.
  source = dataclasses.replace(source, fields=tuple(source.fields))
  prompt = np.stack([source.prompt(s, padded=nulls) for s in sentences])
  tokens, trace = _decode(
    decoding.hashable(model),
    variables,
    prompt,
    jax.random.key(seed),
    source=source,
    scaffold=scaffold,
    steps=steps,
    order=order,
    temperature=temperature,
  )
  texts = [source.decode(row) for row in np.asarray(tokens).tolist()]
  return texts, len(trace.filled)


@functools.partial(
  jax.jit,
  static_argnames=(
    "model",
    "source",
    "scaffold",
    "steps",
    "order",
    "temperature",
  ),
)
def _decode(model, variables, prompt, key, *, source, scaffold, **options):
  mask = model.vocabulary_size - 1
  if scaffold:
    tokens, slot_mask, _ = schema_templates.build_template(
      source.fields, source.budget, source.encode, mask=mask
    )
    forbidden = schema_templates.unfit_tokens(source.texts)
  else:
    tokens = np.full(source.output_length, mask, np.int32)
    slot_mask, forbidden = np.ones(len(tokens), bool), ()
  return template_decoding.decode(
    lambda text: model.apply(variables, text, train=False),
    jnp.asarray(prompt),
    tokens,
    slot_mask,
    mask=mask,
    forbidden=forbidden,
    key=key,
    **options,
  )
