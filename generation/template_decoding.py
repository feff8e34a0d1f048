"""Filling the slots of a template with a masked-diffusion language model.

The decoder of schema scaffolding (arXiv 2507.04504, after LLaDA, arXiv
2502.09992): all slots are predicted at once, the surest predictions are kept,
and so on, until none is open. What is not a slot is never touched. With every
place a slot it is the plain sampler of such a model.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention import checks

ORDERS = ("commit", "remask")
Logits = Callable[[jax.Array], jax.Array]


class Trace(NamedTuple):
  """What happened, of each step that was executed.

  Slots are counted in the order of the template.

  Attributes:
    filled: bool [steps, ..., slots], which slots the step filled.
    told: int32 [steps, ..., slots], the model's choice for every slot.
    confidence: float32 like it, the probability of this choice.
  """

  filled: jax.Array
  told: jax.Array
  confidence: jax.Array


class _State(NamedTuple):
  values: jax.Array
  open: jax.Array
  scores: jax.Array


def plan(slots: int, steps: int) -> tuple[int, int]:
  """How many slots a step fills, and how many steps that takes.

  max(1, ceil(slots / steps)), so that it may end early: 50 slots take 13 of 16
  steps.

  Raises:
    ValueError: for numbers that are not positive.
  """
  for name, value in (("slots", slots), ("steps", steps)):
    checks.whole(name, value, 1)
  each = -(-slots // steps)
  return each, -(-slots // each)


def guided(
  conditional: jax.Array, unconditional: jax.Array, scale: float
) -> jax.Array:
  """u + (scale + 1) (c - u), of logits c and, with a masked prompt, u."""
  return unconditional + (scale + 1) * (conditional - unconditional)


def decode(
  logits_of: Logits,
  prompt: Any,
  tokens: Any,
  slot_mask: Any,
  *,
  steps: int,
  mask: int,
  order: str = "commit",
  temperature: float = 0.0,
  guidance: float = 0.0,
  forbidden: Sequence[int] = (),
  key: jax.Array | None = None,
) -> tuple[jax.Array, Trace]:
  """Fills slots, in one `lax.scan`; jits with `slot_mask` and options static.

  A step fills the `plan`'s number of slots, those of which the model is surest
  among the open ones, for good ("commit", as the authors' code does). Their
  text, as far as we read it, masks the least sure anew instead: "remask" fills
  all open slots and opens the same number with the least confidence again,
  whichever slots these are, but after the last of `steps` steps. There the
  confidence of a slot is that of the step that filled it (ours).

  The mask is never chosen (ours: the authors' code may commit one). With a
  temperature logits / temperature have Gumbel noise added, and the confidence
  is read from these sums, as theirs is; a row's noise depends on its number.

  Args:
    logits_of: from int32 [..., prompt + length] to floats with an axis of the
      vocabulary more, by a model that sees all places.
    prompt: int32 [..., P]; P may be 0.
    tokens: int32 [length], or [..., length], with what is not a slot.
    slot_mask: bool [length], not traced: the same slots in all rows.
    steps: the most that are taken.
    mask: the token of what is open.
    order: "commit" or "remask".
    temperature: 0 takes the likeliest token.
    guidance: of `guided`, twice the work; 0 for none.
    forbidden: tokens that no slot gets, as `schema_templates.unfit_tokens`.
    key: of the noise.

  Returns:
    (tokens, trace): int32 [..., length], and what the steps did; as many as
    were executed are on its first axis.

  Raises:
    ValueError: for an argument that does not fit.
  """
  slots = _slots(slot_mask)
  each, executed = plan(len(slots), steps)
  _check(order, temperature, guidance, key)
  prompt = jnp.asarray(prompt, jnp.int32)
  rows = prompt.shape[:-1]
  tokens = jnp.asarray(tokens, jnp.int32)
  length = len(np.asarray(slot_mask))
  if tokens.shape not in ((length,), (*rows, length)):
    raise ValueError(
      f"tokens has shape {tokens.shape}, but slot_mask has {length} places and "
      f"prompt shape {prompt.shape}."
    )
  tokens = jnp.broadcast_to(tokens, (*rows, length))
  never = np.unique([mask, *forbidden])
  if order == "remask":
    executed = steps

  def logits_with(prompt, values):
    text = jnp.concatenate([prompt, tokens.at[..., slots].set(values)], -1)
    logits = logits_of(text)[..., prompt.shape[-1] + slots, :]
    return logits.astype(jnp.float32)

  def step(state, number):
    logits = logits_with(prompt, state.values)
    if guidance:
      hidden = jnp.full_like(prompt, mask)
      logits = guided(logits, logits_with(hidden, state.values), guidance)
    logits = logits.at[..., never].set(-jnp.inf)
    if temperature:
      noise = _gumbel(jax.random.fold_in(key, number), logits.shape)
      logits = logits / temperature + noise
    told = logits.argmax(-1).astype(jnp.int32)
    confidence = jax.nn.softmax(logits).max(-1)
    if order == "commit":
      filled = state.open & _first(-confidence, state.open, each)
      opened = state.open & ~filled
    else:
      filled, scores = state.open, confidence
      scores = jnp.where(filled, confidence, state.scores)
      opened = _first(scores, jnp.ones_like(filled), each)
      opened &= number + 1 < executed
      state = state._replace(scores=scores)
    values = jnp.where(filled, told, state.values)
    values = jnp.where(opened, mask, values)
    return (
      state._replace(values=values, open=opened),
      Trace(filled, told, confidence),
    )

  shape = (*rows, len(slots))
  first = _State(
    jnp.full(shape, mask, jnp.int32), jnp.ones(shape, bool), jnp.zeros(shape)
  )
  last, trace = jax.lax.scan(step, first, jnp.arange(executed))
  return tokens.at[..., slots].set(last.values), trace


def _first(scores: jax.Array, among: jax.Array, count: int) -> jax.Array:
  """Marks the `count` lowest scores; of equal ones the first."""
  ranks = jnp.where(among, scores, jnp.inf).argsort(-1, stable=True)
  return ranks.argsort(-1) < count


def _gumbel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Noise, of each row by its number."""
  *rows, slots, vocabulary = shape
  count = int(np.prod(rows, dtype=int))
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, np.arange(count))
  draw = jax.vmap(lambda key: jax.random.gumbel(key, (slots, vocabulary)))
  return draw(keys).reshape(shape)


def _slots(slot_mask: Any) -> np.ndarray:
  """The places of slots."""
  slot_mask = np.asarray(slot_mask)
  if slot_mask.ndim != 1 or slot_mask.dtype != bool or not slot_mask.any():
    raise ValueError(
      f"slot_mask is {slot_mask.dtype} of shape {slot_mask.shape} with "
      f"{np.count_nonzero(slot_mask)} slots; it must be bool [length] with one "
      "slot or more."
    )
  return np.flatnonzero(slot_mask)


def _check(order, temperature, guidance, key) -> None:
  if order not in ORDERS:
    raise ValueError(f"{order=} must be one of {ORDERS}.")
  for name, value in (("temperature", temperature), ("guidance", guidance)):
    checks.number(name, value)
    if value < 0:
      raise ValueError(f"{name} is {value}; it must be at least 0")
  if temperature and key is None:
    raise ValueError(f"{temperature=} draws, which needs key=.")
