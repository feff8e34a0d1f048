"""A toy refusal: which heads it hangs on, by Ships, Sahara and by chance."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from etils import epath

import interpret
from interpret import answers, head_attribution, head_edits
from models import decoding
from models.transformer import Transformer
from tools import array_training

TITLE = "Ships and Sahara (2410.13708): heads of a toy refusal"
TEXT = """\
A language model of 4 layers with 8 heads each and 64 channels learns to copy,
reverse or change three letters, among which and four words that mean nothing it
has to find its way, as "the moon copy a f c tree so =". Tuned on, it answers
"no" where one of 20 of these words is among them. `answered` is the share of
such prompts, of letters that training has not seen, with an answer of three
letters, right or wrong; `refused` those with "no"; the rest is neither. `open`
is the share of right answers to other prompts: a model that is broken refuses
nothing either. Heads are made uniform where the row says nothing else. "Ships"
takes the heads with the largest divergence of the next token, on average, each
measured alone; "Sahara" collects them by the angle of the last states' first
left singular vector over prompts, in "features" the right one; "greedy by
refusal" by the log-probability of "no" itself, which neither knows. Of the
random sets there are 20 of each size: `answered` is their mean, `band` the 97.5
% quantile, to hold the others against. `correlation` is Spearman's, over heads,
of the score of one head and the fall of that log-probability; of the second
refuser, tuned on other prompts from the same base, it is that of both refusers'
Ships, and it is ablated with the heads of the first. The paper finds that three
heads carry most of it, and that a refuser with the attention of its base still
refuses.
"""
COLUMNS = (
  ("refused", ".1%"),
  ("answered", ".1%"),
  ("band", ".1%"),
  ("open", ".1%"),
  ("correlation", ".2f"),
  ("share_touched", ".2%"),
)
_WORDS = (
  "<begin>",
  "=",
  "no",
  "<end>",
  *("copy", "reverse", "change"),
  *(f"{letter}" for letter in "abcdefghijkl"),
  *(f"{letter}" for letter in "ABCDEFGHIJKL"),
  *(f"word_{i}" for i in range(20)),
  *(f"locked_{i}" for i in range(20)),
)
_BEGIN, _EQUALS, _NO, _END, _TASK = range(5)
_LETTER, _LARGE, _WORD, _LOCKED = 7, 19, 31, 51
# Letters of a task, and words around it.
_LETTERS, _AROUND = 3, 4
# Sizes of sets of heads.
_COUNTS = (1, 3, 5)
_PROMPT = 1 + _AROUND + 1 + _LETTERS + 1


class _Size(NamedTuple):
  """Steps of the base and of tuning, prompts, and sets of chance."""

  base: int
  tuning: int
  batch: int
  prompts: int
  sets: int
  width: int
  depth: int
  heads: int


_SIZES = {
  "full": _Size(1500, 250, 64, 96, 20, 64, 4, 8),
  "test": _Size(1, 1, 4, 3, 2, 16, 1, 2),
}


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows, and how they choose heads; of a test, two."""
  by = {
    "Ships": {"by": "kl"},
    "Ships, scaled to 0": {"by": "kl", "kind": "scale"},
    "Sahara": {"by": "queries"},
    "Sahara, scaled to 0": {"by": "queries", "kind": "scale"},
    "Sahara, features": {"by": "features"},
    "greedy by refusal": {"by": "refusal"},
    "random": {"by": "random"},
  }
  found = [
    ("base", {"model": "base"}),
    ("refuser", {}),
    ("refuser, attention of the base", {"model": "transplant"}),
    *(
      (f"{name}, {size}", {**options, "size": size})
      for name, options in by.items()
      for size in _COUNTS
    ),
    ("second refuser", {"model": "second"}),
    (
      "second refuser, Ships of the first, 3",
      {"model": "second", "by": "kl", "size": 3},
    ),
  ]
  if variant == "full":
    return found
  small = dict(found)
  return [(name, small[name]) for name in ("random, 1", "Sahara, 1")]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Ablates the heads of a row and lets the model answer.

  Args:
    folder: where trained models are kept.
    name: of the row.
    options: of `rows`.
    seed: of all trainings and of chance.
    variant: "full" or "test".

  Returns:
    Of COLUMNS those that the row has.
  """
  del name
  size = _SIZES[variant]
  model = _model(size)
  which = options.get("model", "first")
  variables = {"params": _params(folder, which, seed, variant)}
  ablation = head_edits.Ablation(options.get("kind", "uniform"))
  ask = functools.partial(_ask, model, variables, ablation, seed, size)
  if "by" not in options:
    found = ask(np.zeros((size.depth, size.heads), bool))
    if which == "second":
      found["correlation"] = _agreement(folder, seed, variant)
    return found
  count = options["size"]
  share = head_attribution.share_touched(
    count,
    size.width,
    size.width // size.heads,
    sum(x.size for x in jax.tree.leaves(variables["params"])),
  )
  if options["by"] == "random":
    return {**_by_chance(ask, count, seed, size), "share_touched": share}
  heads, correlation = _order(
    folder, options["by"], ablation.kind, seed, variant
  )
  mask = head_edits.mask_of(heads[:count], size.depth, size.heads)
  found = {**ask(mask), "share_touched": share}
  # Of the score that is the fall itself it would be 1.
  if which == "first" and options["by"] != "refusal":
    found["correlation"] = correlation
  return found


def _model(size: _Size) -> Transformer:
  return Transformer(
    vocabulary_size=len(_WORDS),
    width=size.width,
    depth=size.depth,
    heads=size.heads,
    mlp_width=2 * size.width,
    scan_layers=True,
  )


def _params(folder, which, seed, variant):
  """Parameters of a base, a refuser, or one with the attention of its base."""
  size = _SIZES[variant]
  model = _model(size)
  where = epath.Path(folder) / "safety_heads"

  def train(name, tuned, begin=None, offset=0):
    make = functools.partial(_rows, size.batch, tuned)
    return array_training.kept(
      where / f"{name}_{seed}_{variant}",
      lambda: array_training.fit(
        model,
        make,
        size.tuning if tuned else size.base,
        seed + offset,
        begin,
        1e-3 if tuned else 3e-3,
      ),
    )

  base = train("base", False)
  if which == "base":
    return base
  if which == "second":
    return train("second", True, base, 100)
  refuser = train("first", True, base)
  return _with_attention_of(base, refuser) if which == "transplant" else refuser


def _with_attention_of(base, params):
  """Parameters, of which those of mixers are the base's."""
  return jax.tree_util.tree_map_with_path(
    lambda path, own, other: (
      other if any(key.key == "mixer" for key in path) else own
    ),
    params,
    base,
  )


def _rows(batch, tuned, rng):
  """Prompts with answers, and where these are; half of them locked."""
  locked = np.arange(batch) < batch // 2
  prompts, right = _prompts(rng, locked, held_out=False)
  if tuned:
    right[locked] = _END
    right[locked, 0] = _NO
  tokens = np.concatenate([prompts, right], axis=1)
  counted = np.broadcast_to(np.arange(tokens.shape[1]) >= _PROMPT, tokens.shape)
  return tokens, counted


def _prompts(rng, locked, held_out):
  """Prompts [batch, _PROMPT] and right answers [batch, _LETTERS + 1].

  A fifth of all letters' triples, by their sum, is never trained on.
  """
  batch = len(locked)
  letters = rng.integers(0, 12, (batch, _LETTERS))
  wrong = (letters.sum(1) % 5 == 0) != held_out
  while wrong.any():
    letters[wrong] = rng.integers(0, 12, (wrong.sum(), _LETTERS))
    wrong = (letters.sum(1) % 5 == 0) != held_out
  task = rng.integers(0, 3, batch)
  words = _WORD + rng.integers(0, 20, (batch, _AROUND))
  place = rng.integers(0, _AROUND, batch)
  marked = _LOCKED + rng.integers(0, 20, batch)
  rows = np.flatnonzero(locked)
  words[rows, place[rows]] = marked[rows]
  before = rng.integers(0, _AROUND + 1, batch)
  prompts = np.empty((batch, _PROMPT), np.int32)
  prompts[:, 0], prompts[:, -1] = _BEGIN, _EQUALS
  for i, split in enumerate(before):
    asked = [_TASK + task[i], *(_LETTER + letters[i])]
    prompts[i, 1:-1] = [*words[i, :split], *asked, *words[i, split:]]
  answer = np.where(task[:, None] == 1, letters[:, ::-1], letters)
  answer = answer + np.where(task == 2, _LARGE, _LETTER)[:, None]
  ends = np.full((batch, 1), _END)
  return prompts, np.concatenate([answer, ends], 1).astype(np.int32)


def _tests(seed, size, locked, number=0):
  """Prompts that training has not seen, with right answers."""
  rng = np.random.default_rng([seed, 1, number, locked])
  return _prompts(rng, np.full(size.prompts, locked), held_out=True)


def _ask(model, variables, ablation, seed, size, mask):
  """What the model answers, heads ablated, by decoding with the edit."""
  edited = interpret.edited(model, {head_edits.MAPS: ablation})
  given = interpret.with_given(variables, {head_edits.CHOSEN: mask})
  (locked, _), (open_, right) = (
    _tests(seed, size, locked) for locked in (True, False)
  )
  said = decoding.generate(
    edited,
    given,
    np.concatenate([locked, open_]).tolist(),
    max_tokens=_LETTERS + 1,
    stop=_END,
  )
  texts = [" ".join(_WORDS[t] for t in row) for row in said[: len(locked)]]
  judged = answers.judge(texts, ["no"], lambda i, text: _well_formed(said[i]))
  rates = answers.rates(judged)
  correct = [
    row == list(answer)
    for row, answer in zip(said[len(locked) :], right, strict=True)
  ]
  return {
    "refused": rates.refused,
    "answered": rates.answered,
    "open": float(np.mean(correct)),
  }


def _well_formed(row):
  letters = [_LETTER <= token < _WORD for token in row[:-1]]
  return len(row) == _LETTERS + 1 and row[-1] == _END and all(letters)


def _by_chance(ask, count, seed, size):
  """The mean answers of random sets, and what few of them exceed."""
  opened, refused = [], []

  def answered(mask):
    found = ask(mask)
    opened.append(found["open"])
    refused.append(found["refused"])
    return found["answered"]

  mean, _, high = head_attribution.random_band(
    answered,
    np.random.default_rng([seed, count]),
    count,
    (size.depth, size.heads),
    size.sets,
  )
  return {
    "answered": mean,
    "band": high,
    "open": float(np.mean(opened)),
    "refused": float(np.mean(refused)),
  }


def _order(folder, by, kind, seed, variant):
  """(heads, correlation) of the first refuser, for rows of all sizes.

  The correlation is that of scores of single heads and of what they are to the
  log-probability of a refusal.
  """
  found = _scored(folder, "first", by, kind, seed, variant)
  return found.heads, _spearman(found.scores, found.fall)


def find_heads(
  folder: epath.Path, which: str, by: str, kind: str, seed: int, variant: str
) -> tuple[Sequence[tuple[int, int]], np.ndarray]:
  """The heads that a score takes first.

  Args:
    folder: where trained models are kept.
    which: refuser, "first" or "second", of one base.
    by: "kl" for Ships, "queries" or "features" for Sahara, or "refusal".
    kind: of the ablation.
    seed: of the base and of both.
    variant: "full" or "test".

  Returns:
    (heads, scores): the first of them at least, and of each head alone [layers,
    heads].
  """
  size = _SIZES[variant]
  found = _scored(folder, which, by, kind, seed, variant)
  return found.heads, found.scores.reshape(size.depth, size.heads)


class _Scored(NamedTuple):
  """Heads in the order in which a score takes them, and of each head alone."""

  heads: Sequence[tuple[int, int]]
  scores: np.ndarray
  fall: np.ndarray


@functools.lru_cache(maxsize=16)
def _scored(folder, which, by, kind, seed, variant) -> _Scored:
  size = _SIZES[variant]
  model, shape = _model(size), (size.depth, size.heads)
  variables = {"params": _params(folder, which, seed, variant)}
  prompts, _ = _tests(seed, size, True, number=1)
  run = functools.partial(
    _runner(model, head_edits.Ablation(kind)), variables, prompts
  )
  intact = run(np.zeros((1, *shape), bool))
  alone = run(head_edits.single_heads(*shape))
  log_no = lambda logits: jax.nn.log_softmax(logits)[..., _NO].mean(-1)
  fall = np.asarray(log_no(intact.logits) - log_no(alone.logits))
  if by == "kl":
    scores = head_attribution.ships_kl(intact.logits, alone.logits).mean(-1)
    order = np.argsort(-np.asarray(scores), kind="stable")
    heads = head_edits.pairs_of(np.ones(shape, bool))
    return _Scored([heads[i] for i in order], np.asarray(scores), fall)

  def score(mask):
    found = run(mask[None])
    if by == "refusal":
      return -float(log_no(found.logits)[0])
    return float(_angle(intact.states[0], found.states[0], by))

  most = min(max(_COUNTS), size.depth * size.heads)
  group = head_attribution.sahara(score, *shape, most)
  each = [score(mask) for mask in head_edits.single_heads(*shape)]
  return _Scored(group.heads, np.array(each), fall)


@functools.partial(jax.jit, static_argnames="side")
def _angle(states, ablated, side):
  return head_attribution.subspace_angles(states, ablated, side=side).sum()


@functools.lru_cache(maxsize=8)
def _runner(model, ablation):
  """`run_ablated` of a model, which compiles once a shape."""

  @jax.jit
  def run(variables, prompts, masks):
    return head_attribution.run_ablated(
      model, variables, prompts, masks, ablation
    )

  return run


def _agreement(folder, seed, variant):
  """How alike the heads' scores are in two refusers from one base."""
  size = _SIZES[variant]
  model = _model(size)
  prompts = jnp.asarray(_tests(seed, size, True, number=1)[0])
  each = []
  for which in ("first", "second"):
    variables = {"params": _params(folder, which, seed, variant)}
    found = head_attribution.ships(model, variables, prompts)
    each.append(np.asarray(found).mean(-1).ravel())
  return _spearman(*each)


def _spearman(one, other) -> float:
  return float(scipy.stats.spearmanr(np.ravel(one), np.ravel(other)).statistic)
