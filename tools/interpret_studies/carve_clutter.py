"""CARVE by clutter: does it help where images hold more than was asked for?"""

import functools
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.sequences import digits_grid
from interpret import contrast_crop, image_regions
from tools import grid_questions, study_command
from tools.interpret_studies import carve, salient_relevance

TITLE = "CARVE by clutter (2509.06461)"
TEXT = """
The same model, and the study above by how much an image holds beside what is
asked for, which is when the paper has CARVE help: attention is more spread over
images of more texture, `edges`, the share of the pixels that Canny's detector
calls edges, and answers are worse where its `entropy` is larger. (Its other
measure is of hues, which these images do not have.) Rows take thirds of 1,200
images by either; images of fewer digits, the one asked for (of an absent one,
any) and some others, with black in the place of the rest; and images with
straight strokes drawn over them, of 7 pixels in any direction. The model has
not seen the last two in training. `pointing` and `overlap` are those of the
attention of the question, of its contrast with the instruction's, and of the
instruction's alone, each with the layer that points best on handwriting of
training without clutter; by chance the first would be 6.2 % for "which". The
other columns are shares of right answers to images as they are and to images of
which a quarter is kept: random tokens, the attention of the question, the
contrast, the blurred contrast, the contrast and the original, and what was
asked for. For "is there" half of the digits are absent, 50 % is chance, and if
the asked one is absent the last column has the whole image; attention is spread
most where it is absent, so that thirds by entropy differ in that too (of the
seed 2: 23, 41 and 85 %). CARVE is worth something with clutter if the column of
the contrast rises over "as it is", and over the question's, as rows have more
of it. Crops are not here: the study above has them.
"""
# Columns, and which rows of the study above they are.
_POINTING = {
  "question": "attention of the question, masked",
  "contrast": "contrast, masked",
  "instruction": "attention of the instruction, masked",
}
_ANSWERS = {
  "as_it_is": "not refined",
  "random_kept": "random tokens, masked",
  "question_kept": "attention of the question, masked",
  "contrast_kept": "contrast, masked",
  "blurred_kept": "contrast, blurred, masked",
  "contrast_and_original": "contrast, masked, with the original",
  "asked_for_kept": "what was asked for, masked",
}
COLUMNS = (
  ("edges", ".1%"),
  ("entropy", ".2f"),
  *((f"pointing,_{name}", ".1%") for name in _POINTING),
  *((f"overlap,_{name}", ".2f") for name in _POINTING),
  *((name, ".1%") for name in _ANSWERS),
)
_THIRDS = ("least", "middle", "most")
_LEVELS = {
  "all": {},
  **{
    f"{third} {by}": {"by": by, "third": place}
    for by in ("edges", "entropy")
    for place, third in enumerate(_THIRDS)
  },
  "1 digit": {"others": 0},
  "4 digits": {"others": 3},
  "8 digits": {"others": 7},
  "6 strokes": {"strokes": 6},
  "12 strokes": {"strokes": 12},
  "24 strokes": {"strokes": 24},
}
# Questions of each kind.
_NUMBERS = {"full": 1200, "test": 6}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """Names of rows, what is asked and what the images are."""
  if variant == "test":
    options = {**_LEVELS["most edges"], "others": 7, "strokes": 6}
    return [("which, all at once", {"kind": "which", **options})]
  return [
    (f"{kind.replace('_', ' ')}, {name}", {"kind": kind, **options})
    for kind in carve.KINDS
    for name, options in _LEVELS.items()
  ]


def measure(
  folder: epath.Path,
  name: str,
  options: dict[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Asks about images of a row, refined by all scores; see COLUMNS."""
  del name
  subject, train, _ = carve.looked(str(folder), seed, variant)
  look = seen(
    str(folder),
    seed,
    variant,
    options["kind"],
    options.get("others"),
    options.get("strokes", 0),
  )
  names = {**_POINTING, **_ANSWERS}.values()
  layers = {row: carve.best_layer(train, carve.ROWS[row]) for row in names}
  attention = look.question[:, layers[_POINTING["question"]]]
  sizes = {
    "edges": edges(look.questions.images),
    "entropy": np.asarray(contrast_crop.attention_entropy(attention[:, None])),
  }
  if "by" in options:
    chosen = third(sizes[options["by"]], options["third"])
    look = subset(look, chosen)
    sizes = {figure: each[chosen] for figure, each in sizes.items()}
  rng = np.random.default_rng((seed, 2))
  scores = {
    row: carve.scores_of(look, carve.ROWS[row], layers[row], rng)
    for row in names
  }
  figures = {figure: float(each.mean()) for figure, each in sizes.items()}
  for figure, row in _POINTING.items():
    targets = look.targets
    figures[f"pointing,_{figure}"] = carve.pointing(scores[row], targets)
    overlaps = carve.overlaps_of(scores[row], targets)
    figures[f"overlap,_{figure}"] = float(overlaps.mean())
  for figure, row in _ANSWERS.items():
    told = carve.right(subject, look, scores[row], carve.ROWS[row])
    figures[figure] = float(told.mean())
  return figures


# Thirds are of the same images.
@functools.lru_cache(maxsize=len(study_command.SEEDS))
def seen(
  folder: str,
  seed: int,
  variant: str,
  kind: str,
  others: int | None,
  strokes: int,
) -> carve.Looked:
  """What the model attends to in images with so much clutter."""
  subject, _, _ = carve.looked(folder, seed, variant)
  questions = grid_questions.ask(
    subject.source, kind, _NUMBERS[variant], seed=seed
  )
  rng = np.random.default_rng((seed, 3))
  if others is not None:
    targets = carve.targets_of(subject.source.words, questions, kind)
    questions = fewer(questions, targets, others, rng)
  return carve.look(subject, stroked(questions, strokes, rng), kind)


def fewer(
  questions: grid_questions.Questions,
  targets: np.ndarray,
  others: int,
  rng: np.random.Generator,
) -> grid_questions.Questions:
  """Questions about images of one digit and some others.

  Args:
    questions: about whole images.
    targets: bool [number, tokens], of which one is kept; of none, any digit.
    others: how many are kept beside it.
    rng: of the draws.

  Returns:
    Those with images that are black elsewhere, where their grids have -1.
    Answers are true but for "how_many" and "list".
  """
  order = rng.random(targets.shape)
  first = (order + targets).argmax(1)
  order[np.arange(len(order)), first] = 2.0
  ranks = (-order).argsort(1).argsort(1)
  kept = (ranks <= others).reshape(questions.grids.shape)
  side = digits_grid.SIDE
  pixels = kept.repeat(side, 1).repeat(side, 2)[..., None]
  return questions._replace(
    images=np.where(pixels, questions.images, questions.images.min()),
    grids=np.where(kept, questions.grids, -1),
  )


def stroked(
  questions: grid_questions.Questions, count: int, rng: np.random.Generator
) -> grid_questions.Questions:
  """Questions about images with strokes over them, where they are brighter."""
  images = questions.images
  drawn = salient_relevance.strokes(rng, len(images), count)[..., None]
  low, high = images.min(), images.max()
  drawn = (low + (high - low) * drawn).astype(images.dtype)
  return questions._replace(images=np.maximum(images, drawn))


def edges(images: np.ndarray) -> np.ndarray:
  """Texture of images [number, height, width, 1] from -1 to 1, [number]."""
  pixels = np.round((images[..., 0] + 1) * 127.5).astype(np.uint8)
  return np.array([image_regions.edge_complexity(each) for each in pixels])


def third(values: np.ndarray, place: int) -> np.ndarray:
  """Numbers of a third of values: of the least, the middle or the most."""
  return np.array_split(np.argsort(values, kind="stable"), 3)[place]


def subset(look: carve.Looked, chosen: np.ndarray) -> carve.Looked:
  """Some of the questions."""
  questions = grid_questions.Questions(*(each[chosen] for each in look[0]))
  return carve.Looked(questions, *(each[chosen] for each in look[1:]))
