"""What a model's logits say, as a number a row: what patching and ablation ask.

Metrics are functions of what the model returns. With their arguments bound,
`functools.partial(logit_difference, right=..., wrong=...)`, they are those that
`patching`, `ablation` and `gradients` take.
"""

import jax
import jax.numpy as jnp


def logit_difference(
  logits: jax.Array,
  right: jax.Array | int,
  wrong: jax.Array | int,
  position: int = -1,
) -> jax.Array:
  """Returns logit(right) - logit(wrong) at a position, float32 [batch].

  Unlike a probability it is linear in what the last norm gives, so that parts
  of a model add up in it.

  Args:
    logits: [batch, length, classes].
    right: integers [batch], or one for all rows.
    wrong: integers, likewise.
    position: of the row, from its end if negative.
  """
  at = logits[:, position].astype(jnp.float32)
  return _of_rows(at, right) - _of_rows(at, wrong)


def log_probability(
  logits: jax.Array, tokens: jax.Array | int, position: int = -1
) -> jax.Array:
  """Returns ln p(token) at a position, float32 [batch].

  Args:
    logits: [batch, length, classes].
    tokens: integers [batch], or one for all rows.
    position: of the row, from its end if negative.
  """
  at = jax.nn.log_softmax(logits[:, position].astype(jnp.float32))
  return _of_rows(at, tokens)


def loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Returns the cross entropy in nats of each row's next tokens, [batch].

  Args:
    logits: [batch, length, classes].
    tokens: integers [batch, length], what the model was given: those at t + 1
      are compared with the logits at t.
  """
  at = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
  found = jnp.take_along_axis(at, jnp.asarray(tokens)[:, 1:, None], axis=-1)
  return -found[..., 0].mean(-1)


def _of_rows(values: jax.Array, numbers: jax.Array | int) -> jax.Array:
  """One of each row's values [batch, classes]: [batch]."""
  numbers = jnp.broadcast_to(jnp.asarray(numbers), values.shape[:1])
  return jnp.take_along_axis(values, numbers[:, None], axis=-1)[:, 0]
