"""Visual attention redistribution in the model of digits on a grid."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import interpret
from interpret import attention_redistribution, sink_edits
from models import decoding, image_places
from tools import grid_questions, interpret_subjects

TITLE = "Visual attention redistribution (2503.03321)"
TEXT = """\
The model of `configs/vision_language.py:digits_grid` is asked one question an
image, about handwriting that training has not seen, while an edit changes the
maps of all layers but the last. Sinks are tokens whose state is large in two
channels, found in the first token, against the paper's threshold scaled to this
width, 20 sqrt(width / 4096). The text has no first token of its own before the
image, so that the first token is an image token too, and where the mass of text
sinks is near nothing all that is moved comes from the image. "image sinks" is
how many of the 16 image tokens are sinks, a mean over the edited layers; the
masses are parts of the attention that a question's last word gives in these
layers, over all heads; "image centric" is the share of heads and layers that
are chosen for that word. A hallucination is an absent digit that is not
denied; lists are decoded with the edit, and digits said of them that are not
there are counted an image. Controls: all heads instead of image-centric ones,
the text as the receiver, as many image tokens drawn at random in the place of
sinks, what sinks of the text have alone, and sinks knocked out beside as many
others (means of 20 draws). The paper reports for
LLaVA-1.5-7B gains of 0.1 (VQAv2) to 3.7 points (VizWiz), a score of 0 without
the choice of heads, and no loss where sinks are knocked out. Where fewer than
one token is a sink, or knocking sinks out costs as much as others, there is no
such phenomenon in a model this small.
"""
COLUMNS = (
  ("which", ".1%"),
  ("how_many", ".1%"),
  ("hallucination", ".1%"),
  ("listed_wrongly", ".2f"),
  ("image_sinks", ".1f"),
  ("image_sink_mass", ".3f"),
  ("text_sink_mass", ".3f"),
  ("other_image_mass", ".3f"),
  ("image_centric", ".1%"),
)
_VAR = {"least_ratio": 0.5}
# The edit of a row, whether sinks are drawn, and whether lists are decoded.
_ROWS = {
  "as it is": {"kind": "none", "lists": True},
  "VAR, ratio 0.5": {**_VAR, "kind": "var", "lists": True},
  "VAR, ratio 0.8": {"least_ratio": 0.8, "kind": "var", "lists": True},
  "all heads": {"every_head": True, "kind": "var", "lists": True},
  "to the text": {**_VAR, "receivers": "text", "kind": "var"},
  "from text sinks alone": {**_VAR, "donors": "text", "kind": "var"},
  "random tokens as sinks": {**_VAR, "at_random": True, "kind": "var"},
  "sinks knocked out": {"kind": "knock_out"},
  "random tokens knocked out": {"kind": "knock_out", "at_random": True},
}
_DRAWS = {"full": 20, "test": 2}
# Questions of a kind, and images of which lists are made.
_NUMBERS = {"full": (600, 200), "test": (6, 0)}
_KINDS = ("which", "how_many", "is_there")
# The released search of channels leaves out what enters the first two layers.
_FIRST_STATE = 2
_MAP = "mixer/attention_weights"


class _Asked(NamedTuple):
  """A subject, and what is asked of it."""

  subject: interpret_subjects.Subject
  questions: dict[str, grid_questions.Questions]


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows and their edits; of a test, two."""
  if variant == "full":
    return list(_ROWS.items())
  names = ("VAR, ratio 0.5", "random tokens knocked out")
  return [(name, {**_ROWS[name], "lists": False}) for name in names]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Asks the model of a seed with an edit.

  Args:
    folder: of what studies share, with the trained model.
    name: of the row.
    options: "kind" of the edit and "lists", whether lists are decoded; and
      fields of the edit.
    seed: of the training, and of draws.
    variant: "full" or "test".

  Returns:
    What COLUMNS names, and the channels that were found.
  """
  del name
  asked = _ask(folder, seed, variant)
  variables = asked.subject.variables
  model = asked.subject.model
  fields = {
    "dimensions": _dimensions(asked),
    "threshold": attention_redistribution.scaled_threshold(model.width),
  }
  model = _edited(model, fields, options)
  figures = []
  for draw in range(_DRAWS[variant] if options.get("at_random") else 1):
    given = interpret.with_given(variables, {"draw": jnp.int32(draw)})
    figures.append(
      _answers(asked, model, given) | _masses(asked, model, fields, given)
    )
  result = {
    key: float(np.mean([found[key] for found in figures])) for key in figures[0]
  }
  result |= _chosen(asked, fields, options)
  if options.get("lists"):
    result |= _lists(asked, model, variables, variant)
  found = enumerate(fields["dimensions"])
  return result | {f"dimension_{i}": float(d) for i, d in found}


@functools.cache
def _ask(folder, seed, variant) -> _Asked:
  subject = interpret_subjects.digits_grid(folder, seed, variant)
  number = _NUMBERS[variant][0]
  questions = {
    kind: grid_questions.ask(subject.source, kind, number) for kind in _KINDS
  }
  return _Asked(subject, questions)


def _edited(model, fields, options) -> nn.Module:
  """The model with the edit of a row in all layers but the last."""
  own = {k: v for k, v in options.items() if k not in ("kind", "lists")}
  if options["kind"] == "none":
    return model
  makes = {"var": sink_edits.Redistribution, "knock_out": sink_edits.KnockOut}
  edit = makes[options["kind"]](**fields, **own)
  return interpret.edited(model, [(name, edit) for name in _maps(model)])


def _maps(model) -> list[str]:
  return [f"layer_{i}/{_MAP}" for i in range(model.depth - 1)]


def _dimensions(asked) -> tuple[int, ...]:
  """The channels in which the states of first tokens are large."""
  model, questions = asked.subject.model, asked.questions["which"]
  first = min(_FIRST_STATE, model.depth - 1)
  names = [f"layer_{i}/input_state" for i in range(first, model.depth)]
  _, values = _read(
    decoding.hashable(model),
    tuple(names),
    asked.subject.variables,
    questions.prompts,
    questions.images,
  )
  states = np.stack([values[name][:, 0] for name in names])
  return attention_redistribution.find_dimensions(states)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(model, names, variables, prompts, images):
  return interpret.run(model, variables, (prompts, images), read=names)


def _answers(asked, model, variables) -> dict[str, float]:
  """Accuracy of each kind of question, and hallucination."""
  return {
    key: value
    for questions in asked.questions.values()
    for key, value in grid_questions.accuracies(
      model, variables, questions
    ).items()
  }


def _maps_of(asked, model, fields, variables) -> list[tuple[Any, ...]]:
  """Of each edited layer the last word's map, image tokens and sinks."""
  questions = asked.questions["is_there"]
  maps = _maps(model)
  states = [name.replace(_MAP, "input_state") for name in maps]
  _, values = _read(
    decoding.hashable(model),
    (*maps, *states, image_places.SPAN),
    variables,
    questions.prompts,
    questions.images,
  )
  result = []
  for name, state in zip(maps, states, strict=True):
    sinks = attention_redistribution.sink_mask(
      values[state], fields["dimensions"], fields["threshold"]
    )
    places = jnp.arange(sinks.shape[1])[None]
    image = image_places.within(places, values[image_places.SPAN])
    result.append((values[name][:, :, -1:], image, sinks))
  return result


def _masses(asked, model, fields, variables) -> dict[str, float]:
  """What a question's last word attends to, with the edit."""
  layers = _maps_of(asked, model, fields, variables)
  each = [attention_redistribution.masses(*layer) for layer in layers]
  mean = lambda field: float(np.mean([getattr(x, field) for x in each]))
  counts = [(image & sinks).sum(axis=1) for _, image, sinks in layers]
  return {
    "image_sinks": float(np.mean(counts)),
    "image_sink_mass": mean("image_sinks"),
    "text_sink_mass": mean("text_sinks"),
    "other_image_mass": mean("image"),
  }


def _chosen(asked, fields, options) -> dict[str, float]:
  """The share of heads and layers that are image-centric without an edit."""
  if "least_ratio" not in options:
    return {}
  subject = asked.subject
  layers = _maps_of(asked, subject.model, fields, subject.variables)
  ratio = {"least_ratio": options["least_ratio"]}
  chosen = [
    attention_redistribution.image_centric(*layer, **ratio) for layer in layers
  ]
  return {"image_centric": float(np.mean(chosen))}


def _lists(asked, model, variables, variant) -> dict[str, float]:
  """Lets the model list the digits of images."""
  source = asked.subject.source
  questions = grid_questions.ask(source, "list", _NUMBERS[variant][1])
  said = grid_questions.listed(model, variables, questions, source)
  scores = grid_questions.list_scores(said, questions.grids)
  return {
    "listed_wrongly": scores["hallucinated"],
    "listed": scores["recall"],
  }
