"""CARVE: does a question's attention, by a general one, say where to look?"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from etils import epath

from interpret import contrast_crop, image_regions
from models import decoding
from tools import grid_questions, interpret_subjects, study_command

TITLE = "CARVE (2509.06461): contrast of attention, mask and crop"
TEXT = """
The vision-language model is asked for the digit at a row and a column, and
whether a digit is there. Its attention to the image at the end of the question
is taken alone, or divided by that under "list", which asks for all there is;
the offset is the median of the latter, and the bare quotient is what the
released code has. The layer of each row is the one that pointed best on
handwriting of training. `pointing` is how often the highest score is on what
was asked for (of `which` one of 16 tokens, of digits that are present as many
as there are), `overlap` the intersection by union of the mask with it. A
quarter of the tokens and at most two regions are kept; all else is black, and
the model is asked again. `which` and `present` are accuracies, `hallucination`
how often an absent digit is said to be there. The paper has gains of 1 to 36
points, of large models, images that are much larger than what is asked for, and
crops that show more pixels. Here an image token is a digit and training had
none that were black or magnified; after a crop rows and columns are not what
they were, so that `which` has no figure there. "With the original" multiplies
the probabilities of both answers, ours: the released code shows both images to
the model, the paper's algorithm the refined one. Controls: random tokens, the
map of "list", a blurred map, and the places that were asked for; of a digit
that is absent there is none, and the whole image is kept.
"""
COLUMNS = (
  ("layer", ".1f"),
  ("entropy", ".2f"),
  ("pointing_which", ".1%"),
  ("pointing_present", ".1%"),
  ("overlap", ".3f"),
  ("which", ".1%"),
  ("present", ".1%"),
  ("hallucination", ".1%"),
)
_CONTRAST = {"scores": "contrast", "offset": "median"}
ROWS = {
  "not refined": {"scores": "none"},
  "random tokens, masked": {"scores": "random"},
  "attention of the instruction, masked": {"scores": "general"},
  "attention of the question, masked": {"scores": "question"},
  "contrast, masked": _CONTRAST,
  "contrast without offset, masked": {"scores": "contrast", "offset": "none"},
  "contrast, blurred, masked": {**_CONTRAST, "blurred": True},
  "contrast, masked, with the original": {**_CONTRAST, "use": "both"},
  "what was asked for, masked": {"scores": "truth"},
  "random tokens, cropped": {"scores": "random", "use": "crop"},
  "attention of the question, cropped": {"scores": "question", "use": "crop"},
  "contrast, cropped": {**_CONTRAST, "use": "crop"},
  "what was asked for, cropped": {"scores": "truth", "use": "crop"},
}
SHARE, REGIONS = 0.25, 2
SIDE = 4  # Of the grid, in digits and in tokens.
# Questions of each kind.
_NUMBERS = {"full": 400, "test": 4}
KINDS = ("which", "is_there")


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """Names of rows, and which scores are used for what."""
  names = ROWS if variant == "full" else ("not refined", "contrast, masked")
  return [(name, ROWS[name]) for name in names]


class Looked(NamedTuple):
  """Questions of a kind, and what the model attends to.

  Attributes:
    questions: that are asked.
    targets: bool [number, tokens], which digits they are about; none for one
      that is absent.
    question: float32 [number, layers, tokens], attention at their end.
    general: likewise, of "list" about the same images.
  """

  questions: grid_questions.Questions
  targets: np.ndarray
  question: jax.Array
  general: jax.Array


def measure(
  folder: epath.Path,
  name: str,
  options: dict[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float | None]:
  """Refines images by a row's scores, and asks again; see COLUMNS."""
  del name
  subject, train, test = looked(str(folder), seed, variant)
  scores, layer = {}, best_layer(train, options)
  for place, kind in enumerate(KINDS):
    rng = np.random.default_rng((seed, place))
    scores[kind] = scores_of(test[kind], options, layer, rng)
  figures = {"layer": layer, "entropy": None}
  if layer is not None and options["scores"] != "contrast":
    maps = [
      getattr(look, options["scores"])[:, layer] for look in test.values()
    ]
    entropy = contrast_crop.attention_entropy(jnp.concatenate(maps)[:, None])
    figures["entropy"] = float(entropy.mean())
  if options["scores"] != "none":
    figures |= placed(scores, test, options["scores"] == "truth")
  for kind, look in test.items():
    told = right(subject, look, scores[kind], options)
    groups = look.questions.groups
    for group in np.unique(groups):
      figures[str(group)] = float(told[groups == group].mean())
  if "absent" in figures:
    figures["hallucination"] = 1.0 - figures.pop("absent")
  if options.get("use") == "crop":
    figures["which"] = None
  return figures


# Rows come with one seed after the other.
@functools.lru_cache(maxsize=len(study_command.SEEDS))
def looked(folder: str, seed: int, variant: str):
  """The subject, and what it attends to in training and test, by kind."""
  subject = interpret_subjects.digits_grid(epath.Path(folder), seed, variant)
  number = _NUMBERS[variant]
  found = {
    split: {
      kind: look(
        subject,
        grid_questions.ask(
          subject.source, kind, number, seed=seed, split=split
        ),
        kind,
      )
      for kind in KINDS
    }
    for split in ("train", "eval")
  }
  return subject, found["train"], found["eval"]


def look(subject, questions, kind) -> Looked:
  """Reads the maps of questions, and of the instruction."""
  words = subject.source.words
  instruction = grid_questions.ask(subject.source, "list", 1).prompts
  general = np.tile(instruction, (len(questions.prompts), 1))
  targets = targets_of(words, questions, kind)
  maps = [
    _maps(
      decoding.hashable(subject.model), subject.variables, p, questions.images
    )
    for p in (questions.prompts, general)
  ]
  return Looked(questions, targets, *maps)


def targets_of(
  words: Sequence[str], questions: grid_questions.Questions, kind: str
) -> np.ndarray:
  """Which digits questions are about, bool [number, tokens]."""
  grids = questions.grids.reshape(len(questions.grids), -1)
  if kind != "which":
    return grids == questions.prompts[:, 1:2]
  places = [place_asked(words, row) for row in questions.prompts]
  return np.arange(grids.shape[1])[None] == np.array(places)[:, None]


def place_asked(words: Sequence[str], prompt: np.ndarray) -> int:
  """The number of the token that a question "which" is about."""
  numbers = re.findall(r"\d+", " ".join(words[token] for token in prompt))
  row, column = map(int, numbers)
  return row * SIDE + column


@functools.partial(jax.jit, static_argnums=0)
def _maps(model, variables, prompts, images):
  layers = range(model.depth)
  return contrast_crop.image_maps(model, variables, (prompts, images), layers)


def scores_of(look: Looked, options, layer: int | None, rng) -> np.ndarray:
  """Scores of tokens [number, tokens]."""
  kind = options["scores"]
  if kind in ("none", "random"):
    return rng.random(look.targets.shape)
  if kind == "truth":
    return look.targets.astype(float)
  if kind in ("question", "general"):
    return np.asarray(getattr(look, kind)[:, layer])
  general = look.general[:, layer]
  offset = 1e-8
  if options["offset"] == "median":
    offset = contrast_crop.median_offset(general)
  quotient = contrast_crop.contrast(look.question[:, layer], general, offset)
  scores = np.asarray(contrast_crop.fuse(quotient[:, None, None]))
  if options.get("blurred"):
    maps = scores.reshape(-1, SIDE, SIDE)
    maps = scipy.ndimage.gaussian_filter(maps, 1.0, axes=(1, 2))
    scores = maps.reshape(scores.shape)
  return scores


def best_layer(train: dict[str, Looked], options) -> int | None:
  """The layer whose scores point best, over kinds of questions.

  None if a row's scores are of no layer.
  """
  if options["scores"] not in ("question", "general", "contrast"):
    return None
  layers = train["which"].question.shape[1]
  told = [
    np.mean(
      [
        pointing(scores_of(look, options, layer, None), look.targets)
        for look in train.values()
      ]
    )
    for layer in range(layers)
  ]
  return int(np.argmax(told))


def pointing(scores: np.ndarray, targets: np.ndarray) -> float:
  """How often the highest score is a target's, where there is any."""
  there = targets.any(-1)
  on_target = np.take_along_axis(targets, scores.argmax(-1)[:, None], 1)[:, 0]
  return float(on_target[there].mean())


def placed(scores, test, truth) -> dict[str, float]:
  """Pointing and overlap of scores."""
  overlaps = [
    overlaps_of(scores[kind], look.targets, truth)
    for kind, look in test.items()
  ]
  return {
    "pointing_which": pointing(scores["which"], test["which"].targets),
    "pointing_present": pointing(scores["is_there"], test["is_there"].targets),
    "overlap": float(np.concatenate(overlaps).mean()),
  }


def overlaps_of(
  scores: np.ndarray, targets: np.ndarray, truth: bool = False
) -> np.ndarray:
  """Intersection by union of regions and targets, where there are any."""
  return np.array(
    [
      image_regions.overlap(regions_of(each, truth).mask.ravel(), target)
      for each, target in zip(scores, targets, strict=True)
      if target.any()
    ]
  )


def regions_of(
  scores: np.ndarray, truth: bool = False
) -> image_regions.Regions:
  """The regions of one image's tokens.

  Args:
    scores: [tokens].
    truth: whether they are 1 for what was asked for, all of which is kept, and
      0; the whole image is, if there is none.
  """
  share = (scores.mean() or 1.0) if truth else SHARE
  count = len(scores) if truth else REGIONS
  return image_regions.select(scores.reshape(SIDE, SIDE), share, count)


def refine(
  look: Looked, scores: np.ndarray, truth: bool, *, crop: bool
) -> np.ndarray:
  """Images of what scores keep; their least value, black, is the rest."""
  images = look.questions.images
  refined = []
  for image, each in zip(images, scores, strict=True):
    regions = regions_of(each, truth)
    factor = len(image) // len(regions.mask)
    regions = image_regions.enlarge(regions, factor)
    refined.append(
      image_regions.refine(image, regions, fill=images.min(), crop=crop)
    )
  return np.stack(refined)


def right(
  subject: interpret_subjects.Subject,
  look: Looked,
  scores: np.ndarray,
  options: Mapping[str, Any],
) -> np.ndarray:
  """Whether answers to images that a row's scores refine are right.

  Args:
    subject: that is asked.
    look: the questions.
    scores: of tokens [number, tokens].
    options: of the row.

  Returns:
    bool [number].
  """
  use, asked = options.get("use", "mask"), look.questions
  if options["scores"] != "none":
    truth = options["scores"] == "truth"
    images = refine(look, scores, truth, crop=use == "crop")
    asked = asked._replace(images=images)
  log_probs = answers(subject, asked)
  if use == "both":
    log_probs += answers(subject, look.questions)
  return log_probs.argmax(-1) == asked.answers


def answers(subject, questions) -> np.ndarray:
  """Log-probabilities of first words [number, words]."""
  logits = grid_questions.first_logits(
    subject.model, subject.variables, questions
  )
  return np.array(jax.nn.log_softmax(logits))
