"""Which heads a behaviour hangs on: Ships and Sahara, by ablation.

"On the Role of Attention Heads in Large Language Model Safety" (arXiv
2410.13708). A head is ablated (`interpret.head_edits`), and what the model says
next is compared with what it said before: on one query by the divergence of its
distributions (Ships), on a set of queries by the angles between the dominant
directions of the last hidden states (generalised Ships). Sahara collects heads
one by one, each time the one that moves the score most.

The behaviour may be any that the last position of a prompt decides, as a toy
refusal. Neither score knows which: they measure change, of whatever kind, and
subspaces of queries are blind to what is the same of all queries
(`subspace_angles`). So what counts is measured beside them, see
`interpret.answers`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import interpret
from interpret import head_edits, model_kinds

SIDES = ("queries", "features")


class Group(NamedTuple):
  """Heads that were found one after another.

  Attributes:
    heads: (layer, head) of each, the first found first.
    scores: of the first, of the first two, ...
  """

  heads: tuple[tuple[int, int], ...]
  scores: tuple[float, ...]


class Ablated(NamedTuple):
  """What a model says after prompts, for each ablation.

  Attributes:
    logits: float32 [ablations, batch, vocabulary], at the last position.
    states: [ablations, batch, width], what the head reads there.
  """

  logits: jax.Array
  states: jax.Array


def ships_kl(logits: jax.Array, ablated: jax.Array) -> jax.Array:
  """Ships: KL(p || p_ablated) in nats, of the next token.

  It has no epsilon: the authors' code adds 1e-12 to both distributions.

  Args:
    logits: of the intact model, [..., vocabulary].
    ablated: of the ablated one, such that it broadcasts.

  Returns:
    float32 [...].
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  log_q = jax.nn.log_softmax(ablated.astype(jnp.float32))
  p = jnp.exp(log_p)
  # What has no probability adds nothing, be the other's logarithm -inf too.
  difference = jnp.where(p > 0, log_p - log_q, 0.0)
  return jnp.maximum((p * difference).sum(-1), 0.0)


def subspace_angles(
  states: jax.Array,
  ablated: jax.Array,
  rank: int = 1,
  side: str = "queries",
) -> jax.Array:
  """Principal angles between dominant subspaces, in degrees, largest last.

  Their sum is the generalised Ships. The paper takes the left singular vectors,
  which say how queries relate to one another: a rotation of all features, or
  the same shift of all queries, has angle 0 however far it goes. `side` of
  "features" is the companion that sees both, the right singular vectors (ours).

  Angles come of sine and cosine: the cosine alone, in float32, tells none
  below 0.02 degrees from 0. Where singular values are equal at `rank` the
  subspace, and so the angle, is not defined.

  Args:
    states: hidden states of the intact model, [queries, width].
    ablated: of the ablated one, the same shape.
    rank: directions of each, r_main; the authors' code takes 1.
    side: "queries" for the left singular vectors, "features" for the right.

  Returns:
    float32 [rank], from 0 to 90.

  Raises:
    ValueError: if shapes differ, or there is no such rank or side.
  """
  if states.ndim != 2 or states.shape != ablated.shape:
    raise ValueError(
      f"states has shape {states.shape} and ablated {ablated.shape}; both must "
      "be the same [queries, width]"
    )
  if not 1 <= rank <= min(states.shape):
    raise ValueError(
      f"rank is {rank}; states of shape {states.shape} have 1 to "
      f"{min(states.shape)}"
    )
  if side not in SIDES:
    raise ValueError(f"side is {side!r}; it must be one of {SIDES}")

  def basis(matrix):
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    matrix = matrix if side == "queries" else matrix.T
    return jnp.linalg.svd(matrix, full_matrices=False)[0][:, :rank]

  one, other = basis(states), basis(ablated)
  singular = functools.partial(jnp.linalg.svd, compute_uv=False)
  product = jnp.matmul(one.T, other, precision="highest")
  # What is left of one basis outside of the other has the sines.
  rest = other - jnp.matmul(one, product, precision="highest")
  cosine = singular(product)
  sine = singular(rest)[::-1]
  return jnp.degrees(jnp.arctan2(sine, cosine))


def sahara(
  score: Callable[[np.ndarray], float], layers: int, heads: int, size: int
) -> Group:
  """Sahara: adds the head with which the group has the largest score.

  It asks for layers * heads scores, then for one fewer each time: 3,069 for
  three of 1,024 heads. Of equal ones the first counts. The group need not be
  the best of its size.

  Args:
    score: of a mask, bool [layers, heads], of the heads that are ablated
      together, as the sum of `subspace_angles`. Jit what it runs, and it
      compiles once.
    layers: how many the model has.
    heads: how many a layer has.
    size: how many heads to collect; the paper's best is 3.

  Raises:
    ValueError: if there are not so many heads, or a score is not a number.
  """
  if not 1 <= size <= layers * heads:
    raise ValueError(
      f"size is {size}; {layers} layers of {heads} heads have 1 to "
      f"{layers * heads}"
    )
  mask = np.zeros((layers, heads), bool)
  found, scores = [], []
  for _ in range(size):
    tried = {}
    for layer, head in head_edits.pairs_of(~mask):
      mask[layer, head] = True
      tried[layer, head] = float(score(mask.copy()))
      mask[layer, head] = False
      if np.isnan(tried[layer, head]):
        raise ValueError(
          f"score of {[*found, (layer, head)]} is not a number; Sahara needs "
          "one to compare"
        )
    best = max(tried, key=tried.get)
    mask[best] = True
    found.append(best)
    scores.append(tried[best])
  return Group(tuple(found), tuple(scores))


def run_ablated(
  model: nn.Module,
  variables: Mapping[str, Any],
  tokens: jax.Array,
  masks: jax.Array | np.ndarray,
  ablation: head_edits.Ablation | None = None,
  last: jax.Array | None = None,
  **options: Any,
) -> Ablated:
  """Runs a language model once for each set of ablated heads.

  One program, whatever the masks are: of no heads it is the intact model. Jit
  it with `model` and `ablation` as static arguments.

  Args:
    model: of `models.transformer`, with `depth` and `heads`.
    variables: its variables.
    tokens: prompts [batch, length]; padding, if any, on the left, and then
      `positions` among the options.
    masks: bool [ablations, layers, heads].
    ablation: of the maps; uniform if None. Its `heads` must be None.
    last: int32 [batch], where each prompt ends; its last column if None.
    **options: of the model's call.

  Raises:
    ValueError: if masks do not fit the model, the ablation says heads, or for
      another kind of model.
  """
  model_kinds.check_language_model(model)
  ablation = head_edits.Ablation() if ablation is None else ablation
  if ablation.heads is not None:
    raise ValueError(
      f"ablation has heads={ablation.heads}, but masks choose them; leave it "
      "None"
    )
  shape = (model.depth, model.heads)
  if masks.ndim != 3 or masks.shape[1:] != shape:
    raise ValueError(
      f"masks has shape {masks.shape}; for this model it must be [ablations, "
      f"{shape[0]}, {shape[1]}]"
    )
  if last is None:
    last = jnp.full(tokens.shape[:1], tokens.shape[1] - 1)

  def run(mask):
    logits, values = interpret.run(
      model,
      variables,
      tokens,
      read=["final_state"],
      edit={head_edits.MAPS: ablation},
      given={head_edits.CHOSEN: mask},
      **options,
    )
    rows = jnp.arange(tokens.shape[0])
    return Ablated(logits[rows, last], values["final_state"][rows, last])

  return jax.lax.map(run, jnp.asarray(masks))


def ships(
  model: nn.Module,
  variables: Mapping[str, Any],
  tokens: jax.Array,
  ablation: head_edits.Ablation | None = None,
  **options: Any,
) -> jax.Array:
  """Ships of every head on every prompt, float32 [layers, heads, batch].

  Arguments and errors are those of `run_ablated`, which this runs 1 + layers *
  heads times, in one program.
  """
  model_kinds.check_language_model(model)
  shape = (model.depth, model.heads)
  none = np.zeros((1, *shape), bool)
  masks = np.concatenate([none, head_edits.single_heads(*shape)])
  logits = run_ablated(
    model, variables, tokens, masks, ablation, **options
  ).logits
  return ships_kl(logits[:1], logits[1:]).reshape(*shape, -1)


def overlap(
  heads: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> float:
  """The share of some heads that are among as many others.

  Of sets that chance draws it is their size by the number of heads there are.

  Args:
    heads: (layer, head) of each.
    others: likewise, as many.

  Raises:
    ValueError: if they are not as many, none, or one is named twice.
  """
  one, other = set(heads), set(others)
  if not len(heads) == len(others) == len(one) == len(other) or not one:
    raise ValueError(
      f"heads is {list(heads)} and others {list(others)}; they must be as "
      "many, at least one, and all different"
    )
  return len(one & other) / len(one)


def share_touched(
  count: int, width: int, head_dim: int, parameters: int
) -> float:
  """The share of parameters in the query projections of some heads.

  A head's is width * head_dim, without its bias: what epsilon would scale. Of
  Llama-2-7b, 524,288 of 6.738e9, which is 0.0078 %, three heads 0.0233 %; the
  paper prints 0.006 % and 0.018 %.

  Args:
    count: of heads.
    width: of the residual stream.
    head_dim: channels of a head.
    parameters: of the model.
  """
  return count * width * head_dim / parameters


def random_band(
  measure: Callable[[np.ndarray], float],
  rng: np.random.Generator,
  count: int,
  shape: Sequence[int],
  sets: int = 20,
  level: float = 0.95,
) -> tuple[float, float, float]:
  """What sets of heads do that chance took, beside which others are judged.

  Args:
    measure: of a mask, bool [layers, heads].
    rng: of NumPy.
    count: heads of a set.
    shape: (layers, heads).
    sets: how many to draw.
    level: share of the sets that lies in the band.

  Returns:
    (mean, low, high): with the quantiles that bound the middle `level`.
  """
  drawn = [
    measure(head_edits.random_heads(rng, count, shape)) for _ in range(sets)
  ]
  low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
  return float(np.mean(drawn)), float(low), float(high)
