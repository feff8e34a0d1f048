"""Models trained on batches that a function makes: subjects of studies.

A loop of a few lines for models of minutes, of which there are several to a
seed; what is to be resumed and evaluated as it goes is a run of `experiment`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

import storage

# Tokens [batch, length] and where the loss counts, bool of the same shape.
Rows = tuple[np.ndarray, np.ndarray]
Params = Mapping[str, Any]


def fit(
  model: nn.Module,
  rows: Callable[[np.random.Generator], Rows],
  steps: int,
  seed: int,
  params: Params | None = None,
  learning_rate: float = 3e-3,
) -> Params:
  """Trains a language model: AdamW, a warm-up and a cosine to a tenth.

  Args:
    model: from tokens [batch, length] to logits.
    rows: makes a batch.
    steps: how many batches.
    seed: of the parameters and the batches.
    params: to begin with; new ones if None.
    learning_rate: the highest.

  Returns:
    Parameters, as NumPy's arrays.

  Raises:
    ValueError: if the loss at the end is not finite.
  """
  rng = np.random.default_rng([seed, steps])
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, max(steps // 10, 1), max(steps, 2), learning_rate / 10
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(schedule, b2=0.98, weight_decay=0.01),
  )
  if params is None:
    example = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(seed), example)["params"]

  def loss_of(params, tokens, counted):
    logits = model.apply({"params": params}, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    )
    weights = counted[:, 1:].astype(jnp.float32)
    return (losses * weights).sum() / weights.sum()

  return minimized(
    loss_of, optimizer, params, (rows(rng) for _ in range(steps))
  )


def minimized(
  loss: Callable[..., jax.Array],
  optimizer: optax.GradientTransformation,
  params: Params,
  batches: Iterable[Sequence[Any]],
) -> Params:
  """Makes a step of the optimizer on each batch.

  Args:
    loss: a number, of parameters and the arrays of a batch.
    optimizer: what makes updates of gradients.
    params: to begin with.
    batches: arrays of each step, always of the same shapes.

  Returns:
    Parameters, as NumPy's arrays.

  Raises:
    ValueError: if the loss of the last step is not finite.
  """

  @jax.jit
  def step(params, state, *batch):
    value, gradient = jax.value_and_grad(loss)(params, *batch)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  state, value, steps = optimizer.init(params), 0.0, 0
  for batch in batches:
    params, state, value = step(params, state, *batch)
    steps += 1
  if not np.isfinite(value):
    raise ValueError(f"the loss after {steps} steps is {value}")
  return jax.device_get(params)


def kept(path: epath.Path, make: Callable[[], Params]) -> Params:
  """Parameters, or all variables, from a file, or made and put there."""
  if path.exists():
    return flax.serialization.msgpack_restore(path.read_bytes())
  params = make()
  path.parent.mkdir(parents=True, exist_ok=True)
  storage.write_whole(path, flax.serialization.msgpack_serialize(params))
  return params
