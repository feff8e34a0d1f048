"""Documents that need look-ups, found by heads that copy, and by controls."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax.core import FrozenDict

from interpret import attention_influence, head_edits, retrieval_heads
from models.transformer import Transformer
from tools import array_training

TITLE = "AttentionInfluence (2505.07293): documents by heads that copy"
TEXT = """\
Documents of 48 tokens, all alike in length, of three kinds: (a) text whose next
token two before decide by chance, of eight letters; (b) the same text with keys
and their values at the beginning, and each key again, with its value, somewhere
behind; (c) a span of 6 to 24 random tokens that is said again. A model of 4
layers with 8 heads learns all three. `solved` is its accuracy at look-ups
alone, for without it scores of heads mean nothing; `retrieval` the mean
retrieval score of the row's heads, of the two (5 % of all) that copy most or of
all others. `auc_b` is the area under the curve of a row's score to tell
documents (b) from (a), `auc_c` (c) from (a); 50 % is chance. The control has
two of these others, drawn five times. Then two-layer models learn, for the same
number of steps, a pool of which half is (a) and a quarter each (b) and (c),
with the fifth that the row selects in it once more; `share_b` and `share_c` are
of this fifth, and losses are in nats, of tokens of documents not seen. The
paper says that the heads find documents which need reasoning, and that a model
trained on more of them is better; plain loss may find them too.
"""
COLUMNS = (
  ("solved", ".1%"),
  ("retrieval", ".2f"),
  ("auc_b", ".1%"),
  ("auc_c", ".1%"),
  ("share_b", ".1%"),
  ("share_c", ".1%"),
  ("loss_a", ".3f"),
  ("loss_b", ".3f"),
  ("loss_c", ".3f"),
)
# Eight letters of text, then sixteen keys and sixteen values.
_TEXT, _KEYS, _VOCABULARY = 8, 16, 40
_PAIRS, _SPAN = 4, (6, 25)
_KINDS = "abc"
_FRACTION = 0.05


class _Size(NamedTuple):
  """Of documents, models and trainings; draws of random heads."""

  length: int
  batch: int
  steps: int
  student_steps: int
  documents: int
  pool: int
  draws: int
  width: int
  depth: int
  heads: int
  student_depth: int


_SIZES = {
  "full": _Size(48, 32, 900, 400, 200, 1600, 5, 64, 4, 8, 2),
  "test": _Size(48, 2, 1, 1, 4, 20, 1, 16, 1, 2, 1),
}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows, and how they score; of a test, one."""
  found = [
    ("retrieval heads", {"by": "retrieval", "student": True}),
    ("retrieval heads, scaled to 0", {"by": "retrieval", "kind": "scale"}),
    ("random other heads", {"by": "random"}),
    ("plain loss", {"by": "loss", "student": True}),
    ("random documents", {"by": "chance", "student": True}),
  ]
  return found if variant == "full" else found[:1]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Scores documents, selects of a pool, and trains on it.

  Args:
    folder: where the model that scores is kept.
    name: of the row.
    options: of `rows`.
    seed: of trainings, documents and chance.
    variant: "full" or "test".

  Returns:
    Of COLUMNS those that the row has.
  """
  del name
  size = _SIZES[variant]
  model = _model(size, size.depth)
  params = array_training.kept(
    epath.Path(folder) / "attention_influence" / f"{seed}_{variant}",
    lambda: array_training.fit(
      model, functools.partial(_mixed, seed, size), size.steps, seed
    ),
  )
  variables = {"params": params}
  heads, scores, solved = _heads(model, variables, seed, size)
  score = functools.partial(
    _scores, model, variables, options, heads, seed, size
  )
  found = {}
  if options["by"] != "chance":
    found = _told_apart(score, seed, size)
  if options["by"] in ("retrieval", "random"):
    used = heads if options["by"] == "retrieval" else ~heads
    found |= {"solved": solved, "retrieval": float(scores[used].mean())}
  if options.get("student"):
    found |= _taught(score, seed, size)
  return found


def _model(size: _Size, depth: int) -> Transformer:
  return Transformer(
    vocabulary_size=_VOCABULARY,
    width=size.width,
    depth=depth,
    heads=size.heads,
    head_dim=16,
    mlp_width=2 * size.width,
    init_scale=0.08,
    rotary=FrozenDict(base=100.0),
    scan_layers=True,
  )


def _heads(model, variables, seed, size):
  """(mask, scores, accuracy) of the heads that copy most in look-ups."""
  rng = np.random.default_rng([seed, 2])
  tokens, answer = _questions(rng, size, _table(seed))
  found = jax.jit(functools.partial(retrieval_heads.of_model, model))(
    variables, tokens, answer
  )
  # Of a model that solves nothing there are no scores, and any heads do.
  scores = np.nan_to_num(found.scores)
  mask = retrieval_heads.top_heads(scores, _FRACTION)
  return mask, scores, float(found.accuracy)


def _scores(model, variables, options, heads, seed, size, tokens):
  """Scores of documents, [draws, documents]; more than one of random heads."""
  run = functools.partial(
    _losses, model, head_edits.Ablation(options.get("kind", "uniform"))
  )
  loss = run(variables, tokens, np.zeros_like(heads))
  rng = np.random.default_rng([seed, 3])
  if options["by"] == "chance":
    return rng.random((1, len(tokens)))
  if options["by"] == "loss":
    return loss[None]
  if options["by"] == "retrieval":
    masks = [heads]
  else:
    count = min(heads.sum(), (~heads).sum())
    masks = [
      head_edits.random_heads(rng, count, heads.shape, heads)
      for _ in range(size.draws)
    ]
  return np.stack(
    [
      attention_influence.influence(loss, run(variables, tokens, mask))
      for mask in masks
    ]
  )


def _losses(model, ablation, variables, tokens, mask):
  """Losses of documents, a batch after another: [documents]."""
  run = _runner(model, ablation)
  part = 50
  return np.concatenate(
    [
      run(variables, tokens[at : at + part], mask)
      for at in range(0, len(tokens), part)
    ]
  )


@functools.lru_cache(maxsize=4)
def _runner(model, ablation):
  @jax.jit
  def run(variables, tokens, mask):
    return attention_influence.losses(model, variables, tokens, mask, ablation)

  return run


def _told_apart(score, seed, size):
  """Areas under the curves, averaged over draws."""
  of_kind = {kind: score(_held_out(seed, size, kind)) for kind in _KINDS}
  return {
    f"auc_{kind}": float(
      np.mean(
        [_area(*pair) for pair in zip(of_kind[kind], of_kind["a"], strict=True)]
      )
    )
    for kind in "bc"
  }


def _area(above, below):
  """How often a score of the first is the larger; equal ones count half."""
  difference = above[:, None] - below[None]
  return ((difference > 0) + 0.5 * (difference == 0)).mean()


def _taught(score, seed, size):
  """Selects a fifth of a pool, trains on all and the fifth, and evaluates."""
  rng = np.random.default_rng([seed, 4])
  quarter = size.pool // 4
  counts = (size.pool - 2 * quarter, quarter, quarter)
  kinds = np.repeat(list(_KINDS), counts)
  pool = _some_of_each(rng, seed, size, counts)
  chosen = attention_influence.select(
    score(pool)[0], np.zeros(size.pool, int), 0.2
  )
  twice = np.concatenate([pool, pool[chosen]])
  student = _model(size, size.student_depth)

  def batch(rng):
    tokens = twice[rng.choice(len(twice), size.batch)]
    return tokens, np.ones(tokens.shape, bool)

  params = array_training.fit(student, batch, size.student_steps, seed + 1)
  ablation = head_edits.Ablation()
  none = np.zeros((size.student_depth, size.heads), bool)
  found = {f"share_{kind}": (kinds[chosen] == kind).mean() for kind in "bc"}
  for kind in _KINDS:
    tokens = _held_out(seed, size, kind)
    loss = _losses(student, ablation, {"params": params}, tokens, none)
    found[f"loss_{kind}"] = loss.mean()
  return {key: float(value) for key, value in found.items()}


def _held_out(seed, size, kind):
  rng = np.random.default_rng([seed, 5, _KINDS.index(kind)])
  return _documents(rng, kind, size.documents, size.length, _table(seed))


def _mixed(seed, size, rng):
  """A batch of all kinds, of which all tokens count."""
  third = size.batch // 3
  counts = (third, size.batch - 2 * third, third)
  tokens = _some_of_each(rng, seed, size, counts)
  return tokens, np.ones(tokens.shape, bool)


def _some_of_each(rng, seed, size, counts):
  """Documents of all kinds, one kind after another."""
  return np.concatenate(
    [
      _documents(rng, kind, count, size.length, _table(seed))
      for kind, count in zip(_KINDS, counts, strict=True)
    ]
  )


@functools.cache
def _table(seed):
  """Probabilities of a letter after two others, summed up."""
  rng = np.random.default_rng([seed, 6])
  shares = rng.dirichlet(np.full(_TEXT, 0.3), (_TEXT, _TEXT))
  return shares.cumsum(-1)


def _documents(rng, kind, count, length, table):
  """Documents of a kind, int32 [count, length]."""
  if kind == "c":
    span = rng.integers(_TEXT, _VOCABULARY, (count, length), np.int32)
    # Of all lengths, or a head could copy from a distance that is always same.
    size = rng.integers(*_SPAN, (count, 1))
    return np.take_along_axis(span, np.arange(length)[None] % size, axis=1)
  tokens = _text(rng, count, length, table)
  if kind == "b":
    keys, values = _pairs(rng, count)
    pairs = np.stack([keys, values], -1).reshape(count, -1)
    tokens[:, : 2 * _PAIRS] = pairs
    # Places of two, behind the pairs: each of them asked for twice.
    places = np.arange(2 * _PAIRS, length - 1, 2)
    for row in range(count):
      asked = rng.choice(places, 2 * _PAIRS, replace=False)
      which = rng.permutation(2 * _PAIRS) % _PAIRS
      tokens[row, asked] = keys[row, which]
      tokens[row, asked + 1] = values[row, which]
  return tokens


def _text(rng, count, length, table):
  tokens = rng.integers(0, _TEXT, (count, length), np.int32)
  for t in range(2, length):
    bounds = table[tokens[:, t - 2], tokens[:, t - 1]]
    drawn = (rng.random((count, 1)) > bounds).sum(-1)
    tokens[:, t] = np.minimum(drawn, _TEXT - 1)
  return tokens


def _pairs(rng, count):
  keys = rng.permuted(np.tile(np.arange(_KEYS), (count, 1)), axis=1)[:, :_PAIRS]
  return _TEXT + keys, _TEXT + _KEYS + rng.integers(0, _KEYS, keys.shape)


def _questions(rng, size, table):
  """Look-ups alone: pairs, text, a key, and its value as the answer."""
  count = size.documents
  tokens = _text(rng, count, size.length, table)
  keys, values = _pairs(rng, count)
  tokens[:, : 2 * _PAIRS] = np.stack([keys, values], -1).reshape(count, -1)
  which = rng.integers(0, _PAIRS, count)
  rows = np.arange(count)
  tokens[:, -2], tokens[:, -1] = keys[rows, which], values[rows, which]
  answer = np.zeros(tokens.shape, bool)
  answer[:, -1] = True
  return tokens, answer
