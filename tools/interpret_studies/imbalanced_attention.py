"""PAINT: image tokens that the ViT marks are looked at more; what of it?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import interpret
from interpret import token_boost, token_boost_edit, token_selection
from models import decoding
from tools import grid_questions, interpret_subjects

TITLE = "Imbalanced attention, later PAINT (2501.12206): boosted image tokens"
TEXT = """
Scores of image tokens are raised from the last token of the prompt on, z + g
|z|, in all layers but the first: of the quarter that the ViT's block attends to
most (its mean over queries and heads, as this ViT has no class token) by alpha,
of outliers of the same by beta. As that ViT has one block, it stands for the
paper's first layer and for its last but one; spatial tokens would be the local
ones again, and have no row. `which` and `present` are accuracies,
`hallucination` how often an absent digit is said to be there. Columns from
`list_hallucinated` to `repetition` are of "list", decoded with a cache up to 24
words: the mean number of different digits that are not there, the share of an
image's digits that are named, and that of words said before in the same answer,
which lowers a rate by mentions. The paper's drop in hallucination comes with
captions that loop: at its best gains over a third of those it released do.
`layer_0` to `layer_2` are the weights of all image tokens at the end of "which"
in each layer, after the boost, of which the first layer has none; weights that
are all alike would have 0.889 there, as 16 of 18 tokens are the image's.
`marked` is the weight of those that the ViT marks, local ones and outliers, in
all rows, and `first_token` that of the first one, where a sink would be, as no
text stands before the image; both are of the layers that are boosted. The paper
has the weight of the image fall with depth. Controls: as many random tokens,
PAI (all image tokens), the image mass of the boost with no token preferred
(ours), and lists that are cut to the lengths of the boosted ones. Guidance, of
which the paper's figures have 1.1, is apart: away from what the model says
without an image, which training never showed it.
"""
COLUMNS = (
  ("which", ".1%"),
  ("present", ".1%"),
  ("hallucination", ".1%"),
  ("list_hallucinated", ".3f"),
  ("recall", ".1%"),
  ("length", ".2f"),
  ("repetition", ".3f"),
  *((f"layer_{layer}", ".3f") for layer in range(3)),
  ("marked", ".3f"),
  ("first_token", ".3f"),
)
_PAINT = {"alpha": 0.7, "beta": 0.4}
_ROWS = {
  "not boosted": {},
  **{
    f"alpha {alpha}, beta 0.4": {"alpha": alpha, "beta": 0.4}
    for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)
  },
  "alpha 0.7, beta 0": {"alpha": 0.7, "beta": 0.0},
  "random tokens, 0.7 and 0.4": {**_PAINT, "tokens": "random"},
  "PAI 0.5": {"alpha": 0.5, "tokens": "all"},
  "image mass of 0.7 and 0.4": {**_PAINT, "uniform": True},
  "not boosted, lists as long as of 0.7 and 0.4": {"cut": True},
  "guidance 1.1 alone": {"guidance": 1.1},
  "alpha 0.7, beta 0.4, guidance 1.1": {**_PAINT, "guidance": 1.1},
}
FIRST_LAYER = 1
MOST_WORDS = 24
# Questions of each kind.
_NUMBERS = {"full": 400, "test": 4}
KINDS = ("which", "is_there", "list")
_TEXT_MAPS = "layer_*/mixer/attention_weights"
_VIT_MAP = "vision_trunk/block_0/mixer/attention_weights"


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """Names of rows, and what is boosted."""
  tested = ("not boosted", "alpha 0.7, beta 0.4, guidance 1.1", "PAI 0.5")
  names = _ROWS if variant == "full" else tested
  return [(name, _ROWS[name]) for name in names]


def measure(
  folder: epath.Path,
  name: str,
  options: dict[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Asks the model with a row's boost; see COLUMNS."""
  del name
  subject, questions = asked(str(folder), seed, variant)
  figures = {}
  for kind in ("which", "is_there"):
    logits = one_word(subject, questions[kind], options, seed)
    right = np.asarray(logits.argmax(-1)) == questions[kind].answers
    for group in np.unique(questions[kind].groups):
      chosen = questions[kind].groups == group
      figures[str(group)] = float(right[chosen].mean())
  if "absent" in figures:
    figures["hallucination"] = 1.0 - figures.pop("absent")
  figures |= image_mass(subject, questions["which"], options, seed)
  said = lists(subject, questions["list"], options, seed)
  if options.get("cut"):
    longest = map(len, lists(subject, questions["list"], _PAINT, seed))
    said = [row[:most] for row, most in zip(said, longest, strict=True)]
  return figures | scores_of_lists(said, questions["list"].grids)


@functools.lru_cache(maxsize=1)
def asked(folder: str, seed: int, variant: str):
  """The subject, and questions by kind."""
  subject = interpret_subjects.digits_grid(epath.Path(folder), seed, variant)
  ask = functools.partial(
    grid_questions.ask, subject.source, number=_NUMBERS[variant], seed=seed
  )
  return subject, {kind: ask(kind) for kind in KINDS}


def boosted(subject, questions, options, seed):
  """(model, variables) with a row's boost of these questions."""
  if "alpha" not in options:
    return subject.model, subject.variables
  local, summary = marked(subject, questions)
  if options.get("tokens") == "random":
    key = jax.random.key(seed)
    local, summary = token_selection.random_like(key, local, summary)
  if options.get("tokens") == "all":
    gains = token_boost.pai_gains(jnp.ones_like(local), options["alpha"])
  else:
    gains = token_boost.token_gains(
      local, summary, options["alpha"], options["beta"]
    )
  last = gains.shape[1] + questions.prompts.shape[1] - 1
  boost = token_boost_edit.Boost(FIRST_LAYER, options.get("uniform", False))
  given = {"token_gains": gains, "first_position": jnp.array([last])}
  model = interpret.edited(subject.model, {token_boost_edit.SCORES: boost})
  return model, interpret.with_given(subject.variables, given)


def marked(subject, questions) -> tuple[jax.Array, jax.Array]:
  """The image tokens that the ViT marks, as `token_selection.select`."""
  seen = received(
    decoding.hashable(subject.model), subject.variables, questions.images
  )
  return token_selection.select(seen, seen)


@functools.partial(jax.jit, static_argnums=0)
def received(model, variables, images):
  """What image tokens receive in the ViT, float32 [number, tokens]."""
  prompts = jnp.zeros((len(images), 1), jnp.int32)
  _, maps = interpret.run(model, variables, (prompts, images), read=_VIT_MAP)
  return token_selection.attention_received(maps[_VIT_MAP])


def image_mass(subject, questions, options, seed) -> dict[str, float]:
  """Weights at the end of a question, of the image and of tokens in it."""
  model, variables = boosted(subject, questions, options, seed)
  maps = _maps(
    decoding.hashable(model), variables, questions.prompts, questions.images
  )
  image = subject.model.image_tokens(questions.images.shape)
  # [layers, images, image tokens]
  last = np.stack(maps)[..., -1, :image].mean(2)
  local, summary = marked(subject, questions)
  late = last[FIRST_LAYER:]
  return {
    **{f"layer_{i}": float(x) for i, x in enumerate(last.sum(-1).mean(1))},
    "marked": float(np.where(local | summary, late, 0.0).sum(-1).mean()),
    "first_token": float(late[..., 0].mean()),
  }


@functools.partial(jax.jit, static_argnums=0)
def _maps(model, variables, prompts, images):
  _, maps = interpret.run(model, variables, (prompts, images), read=_TEXT_MAPS)
  return [maps[_TEXT_MAPS.replace("*", str(i))] for i in range(model.depth)]


def one_word(subject, questions, options, seed) -> jax.Array:
  """Logits of first words [number, words]."""
  model, variables = boosted(subject, questions, options, seed)
  logits = grid_questions.first_logits(model, variables, questions)
  if "guidance" not in options:
    return logits
  last = jnp.int32(questions.prompts.shape[1] - 1)
  text = text_logits(subject, questions.prompts, last)
  return token_boost.guide(logits, text, options["guidance"])


def lists(subject, questions, options, seed) -> list[list[int]]:
  """What is said of each image after "list"."""
  model, variables = boosted(subject, questions, options, seed)
  if "guidance" in options:
    return guided_lists(subject, model, variables, questions, options)
  return grid_questions.listed(
    model, variables, questions, subject.source, max_tokens=MOST_WORDS
  )


def guided_lists(subject, model, variables, questions, options):
  """Lists by one pass over image and text a word, with guidance."""
  begin = questions.prompts.shape[1]
  tokens = np.pad(questions.prompts, ((0, 0), (0, MOST_WORDS)))
  end = subject.source.words.index("end")
  model = decoding.hashable(model)
  for place in range(begin, begin + MOST_WORDS):
    last = jnp.int32(place - 1)
    seen = _logits_at(model, variables, tokens, last, questions.images)
    guided = token_boost.guide(
      seen, text_logits(subject, tokens, last), options["guidance"]
    )
    tokens[:, place] = np.asarray(guided.argmax(-1))
  said = []
  for row in tokens[:, begin:].tolist():
    row = row[: row.index(end)] if end in row else row
    said.append([word for word in row if word < 10])
  return said


def text_logits(subject, tokens, last) -> jax.Array:
  """Logits after the token `last` of the text, without its image."""
  model = decoding.hashable(subject.model)
  return _logits_at(model, subject.variables, tokens, last, None)


@functools.partial(jax.jit, static_argnums=0)
def _logits_at(model, variables, tokens, last, images):
  return model.apply(variables, tokens, images, train=False)[:, last]


def scores_of_lists(said, grids) -> dict[str, float]:
  """Recall, hallucinations, length and repetition of lists."""
  scores = grid_questions.list_scores(said, grids)
  words = sum(map(len, said))
  again = words - sum(len(set(row)) for row in said)
  return {
    "list_hallucinated": scores["hallucinated"],
    "recall": scores["recall"],
    "length": words / len(said),
    "repetition": again / max(1, words),
  }
