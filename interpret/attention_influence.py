"""Documents by what they lose without the heads that copy.

"AttentionInfluence" (arXiv 2505.07293): the attention of a model's retrieval
heads is made uniform (`interpret.head_edits`), and documents whose loss rises
the most, relative to what it was, are taken: the paper calls them intensive in
reasoning. The score says how much a document hangs on those heads, and no more;
longer documents may lose more by length alone, so compare within lengths
(`strata`), and beside random heads and plain loss.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import interpret
from interpret import head_edits, model_kinds

FORMS = ("relative", "relative_to_masked", "difference")


def document_loss(
  logits: jax.Array, tokens: jax.Array, counted: jax.Array | None = None
) -> jax.Array:
  """Mean cross-entropy in nats of the tokens of a document, float32 [batch].

  Args:
    logits: [batch, length, vocabulary], those at t of the token at t + 1.
    tokens: integers [batch, length].
    counted: bool [batch, length], tokens whose loss counts; all if None. The
      first is predicted by nobody. NaN where none counts.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits[:, :-1].astype(jnp.float32), tokens[:, 1:]
  )
  if counted is None:
    return losses.mean(-1)
  counted = counted[:, 1:]
  return jnp.where(counted, losses, 0.0).sum(-1) / counted.sum(-1)


def influence(
  loss: jax.Array,
  masked_loss: jax.Array,
  form: str = "relative",
  floor: float = 0.0,
) -> jax.Array:
  """How much loss rises without the heads.

  Args:
    loss: of the intact model, [documents].
    masked_loss: of the one without, the same.
    form: "relative", (masked - loss) / loss, equation 5; "relative_to_masked",
      divided by the masked loss, as figure 3 has it: of the same order, but
      with other thresholds; or "difference", of another order.
    floor: what a loss is at least, where it divides: documents that are known
      by heart would have any score. Ours; say how many are below.

  Returns:
    float32 [documents].

  Raises:
    ValueError: if there is no such form.
  """
  if form not in FORMS:
    raise ValueError(f"form is {form!r}; it must be one of {FORMS}")
  loss, masked_loss = (
    jnp.asarray(x).astype(jnp.float32) for x in (loss, masked_loss)
  )
  rise = masked_loss - loss
  if form == "difference":
    return rise
  below = loss if form == "relative" else masked_loss
  return rise / jnp.maximum(below, floor)


def losses(
  model: nn.Module,
  variables: Mapping[str, Any],
  tokens: jax.Array,
  mask: jax.Array | np.ndarray,
  ablation: head_edits.Ablation | None = None,
  counted: jax.Array | None = None,
  **options: Any,
) -> jax.Array:
  """Losses of documents under a model some of whose heads are ablated.

  Args:
    model: of `models.transformer`.
    variables: its variables.
    tokens: integers [batch, length].
    mask: bool [layers, heads]; of no heads for the intact model, in the same
      program.
    ablation: of the maps; uniform over visible keys if None.
    counted: see `document_loss`.
    **options: of the model's call.

  Returns:
    float32 [batch].

  Raises:
    ValueError: if the mask does not fit the model, or for another kind of
      model.
  """
  model_kinds.check_language_model(model)
  if mask.shape != (model.depth, model.heads):
    raise ValueError(
      f"mask has shape {mask.shape}; for this model it must be "
      f"{(model.depth, model.heads)}"
    )
  logits, _ = interpret.run(
    model,
    variables,
    tokens,
    edit={
      head_edits.MAPS: head_edits.Ablation() if ablation is None else ablation
    },
    given={head_edits.CHOSEN: mask},
    **options,
  )
  return document_loss(logits, tokens, counted)


def select(
  scores: jax.Array | np.ndarray,
  groups: jax.Array | np.ndarray,
  fraction: float,
) -> np.ndarray:
  """Marks the documents with the largest scores of each group.

  Scores compare within one domain only. Of each group it is `fraction`, rounded
  down; of equal scores the first count.

  Args:
    scores: [documents].
    groups: integers [documents], of domains; or of domains and lengths, as
      `strata` makes them.
    fraction: from 0 to 1; the paper takes 0.2.

  Returns:
    bool [documents].

  Raises:
    ValueError: if shapes differ, the fraction is none, or a score is not a
      number.
  """
  scores, groups = np.asarray(scores), np.asarray(groups)
  if scores.ndim != 1 or scores.shape != groups.shape:
    raise ValueError(
      f"scores has shape {scores.shape} and groups {groups.shape}; both must "
      "be [documents]"
    )
  if not 0 <= fraction <= 1:
    raise ValueError(f"fraction is {fraction}; it must be from 0 to 1")
  if np.isnan(scores).any():
    raise ValueError(
      f"scores has {np.isnan(scores).sum()} that are not a number"
    )
  chosen = np.zeros(len(scores), bool)
  for group in np.unique(groups):
    own = np.flatnonzero(groups == group)
    # A product such as 0.29 * 100 is just below the integer it means.
    count = int(fraction * len(own) + 1e-9)
    order = np.argsort(-scores[own], kind="stable")
    chosen[own[order[:count]]] = True
  return chosen


def strata(
  lengths: np.ndarray, count: int, domains: np.ndarray | None = None
) -> np.ndarray:
  """Groups of documents that are about as long, for `select`.

  Args:
    lengths: [documents], in tokens.
    count: of strata, by quantiles of all lengths.
    domains: integers [documents], so that a group is of one domain too; None
      for one domain.

  Returns:
    int [documents].

  Raises:
    ValueError: if count is not positive.
  """
  if count < 1:
    raise ValueError(f"count is {count}; it must be at least 1")
  lengths = np.asarray(lengths)
  bounds = np.quantile(lengths, np.linspace(0, 1, count + 1)[1:-1])
  stratum = np.searchsorted(bounds, lengths, side="right")
  return stratum if domains is None else np.asarray(domains) * count + stratum
