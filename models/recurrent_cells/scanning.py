"""What all recurrent cells do with time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.layers import Dtype

State = dict[str, jax.Array]


def scan(
  step: Callable[[State, jax.Array], State], state: State, inputs: jax.Array
) -> tuple[jax.Array, State]:
  """Runs a cell over time.

  Args:
    step: from a state and what the inputs of a time make, [batch, any], to the
      next state.
    state: before the first.
    inputs: [batch, time, any].

  Returns:
    (hidden, state): "hidden" of each state, float32 [batch, time, width], and
    the last state.
  """

  def one(state, x):
    state = step(state, x)
    return state, state["hidden"]

  state, hidden = jax.lax.scan(one, state, inputs.swapaxes(0, 1))
  return hidden.swapaxes(0, 1), state


def product(x: jax.Array, kernel: jax.Array, dtype: Dtype) -> jax.Array:
  """x kernel with factors of a dtype and sums of at least float32."""
  return jnp.matmul(
    x.astype(dtype),
    kernel.astype(dtype),
    preferred_element_type=jnp.promote_types(dtype, jnp.float32),
  )


def empty(names: tuple[str, ...], batch: int, width: int) -> State:
  """The state before anything was seen."""
  return {name: jnp.zeros((batch, width), jnp.float32) for name in names}
