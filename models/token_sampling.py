"""How a token is drawn from logits: greedy, temperature, top-k, top-p, min-p.

Each step takes float32 logits [..., vocabulary] and returns such, with minus
infinity at what may not be drawn. They follow one another as in Hugging Face's
`transformers`: temperature, top-k, top-p, min-p. What stays depends on the
values only and not on the order of the vocabulary: of tokens that are equally
probable all stay or none, so ties may leave more of them than were asked for.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
  """The steps to take, None or 0 for one that is left out.

  Which steps there are is part of a compiled program, and top_k; the other
  values are arguments of it.

  Attributes:
    temperature: None takes the most probable token, the first of equals.
    top_p: the part of the probability mass to draw from, in (0, 1).
    min_p: the least probability, in units of the largest, in (0, 1].
    top_k: how many tokens to draw from.
  """

  temperature: float | None = None
  top_p: float | None = None
  min_p: float | None = None
  top_k: int = dataclasses.field(default=0, metadata={"static": True})


def sampling(
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> Sampling:
  """Checks the options as people give them.

  Args:
    temperature: 0 takes the most probable token; the others say nothing then.
    top_k: 0 leaves all tokens.
    top_p: 1 leaves all tokens.
    min_p: 0 leaves all tokens.

  Raises:
    ValueError: one is out of its range.
  """
  if not 0 <= temperature < math.inf:
    raise ValueError(f"{temperature=} is not a number that is 0 or more.")
  if top_k != int(top_k) or top_k < 0:
    raise ValueError(f"{top_k=} is not an integer that is 0 or more.")
  if not 0 < top_p <= 1:
    raise ValueError(f"{top_p=} is not above 0 and at most 1.")
  if not 0 <= min_p <= 1:
    raise ValueError(f"{min_p=} is not from 0 to 1.")
  if temperature == 0:
    return Sampling()
  return Sampling(
    temperature=float(temperature),
    top_p=float(top_p) if top_p < 1 else None,
    min_p=float(min_p) if min_p > 0 else None,
    top_k=int(top_k),
  )


def draw(how: Sampling, logits: jax.Array, keys: jax.Array) -> jax.Array:
  """Draws a token for each row.

  Args:
    how: the steps to take.
    logits: [batch, vocabulary].
    keys: random keys [batch], one a row: no draw depends on other rows.

  Returns:
    int32 [batch].
  """
  if how.temperature is None:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = allowed(how, logits)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def allowed(how: Sampling, logits: jax.Array) -> jax.Array:
  """The logits that `draw` draws from."""
  logits = logits.astype(jnp.float32)
  if how.temperature is not None:
    logits = apply_temperature(logits, how.temperature)
  if how.top_k:
    logits = keep_top_k(logits, how.top_k)
  if how.top_p is not None:
    logits = keep_top_p(logits, how.top_p)
  if how.min_p is not None:
    logits = keep_min_p(logits, how.min_p)
  return logits


def apply_temperature(logits: jax.Array, temperature: float) -> jax.Array:
  """Less the largest, then over the temperature: no infinity if it is tiny."""
  return (logits - logits.max(axis=-1, keepdims=True)) / temperature


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
  """Keeps what is at least the k-th largest, all if there are less than k."""
  k = min(k, logits.shape[-1])
  return _at_least(logits, jax.lax.top_k(logits, k)[0][..., -1:])


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
  """Keeps each token for which those above it have together less than p.

  So the most probable stays always, and what stays has at least p: the nucleus
  of Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
  Masses are float32 sums in falling order.
  """
  ordered = -jnp.sort(-logits, axis=-1)
  mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
  above = jnp.concatenate([jnp.zeros_like(mass[..., :1]), mass[..., :-1]], -1)
  # Of tokens that are equal the first decides.
  least = jnp.where(above < p, ordered, jnp.inf).min(axis=-1, keepdims=True)
  return _at_least(logits, least)


def keep_min_p(logits: jax.Array, p: float) -> jax.Array:
  """Keeps what has at least p times the probability of the most probable.

  Nguyen et al., "Turning Up the Heat: Min-p Sampling" (2024), eq. 2 and 3.
  """
  return _at_least(logits, logits.max(axis=-1, keepdims=True) + jnp.log(p))


def _at_least(logits, least):
  return jnp.where(logits >= least, logits, -jnp.inf)


def row_keys(seed: int, rows: jax.Array) -> jax.Array:
  """A random key for each of `rows`, integers that say which row it is."""
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)


def step_keys(keys: jax.Array, step: jax.Array) -> jax.Array:
  """The keys of `row_keys` for one step."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, step)
