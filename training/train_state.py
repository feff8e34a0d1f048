"""The train state: all that changes from step to step, as one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from training import trained


@flax.struct.dataclass
class TrainState:
  """One run at one step.

  Attributes:
    step: int32 scalar, the number of updates done.
    params: parameters, float32, those that are frozen too.
    collections: what else the model has, by name, as "batch_stats", the
      running statistics of normalisation layers; may be empty.
    opt_state: state of the optax transformation, of what is trained.
    ema: exponential moving average of `{"params", **collections}`, or None.
    key: the key from which each step's randomness is derived.
  """

  step: jax.Array
  params: Any
  collections: dict[str, Any]
  opt_state: Any
  ema: Any
  key: jax.Array

  def variables(self, *, averaged: bool = True) -> dict[str, Any]:
    """What to evaluate with: the moving average if there is one."""
    if averaged and self.ema is not None:
      return self.ema
    return {"params": self.params, **self.collections}


def create_state(
  variables: dict[str, Any],
  tx: optax.GradientTransformation,
  key: jax.Array,
  *,
  use_ema: bool,
  trainable: trained.Trainable | None = None,
) -> TrainState:
  """Builds the state of step 0 from a model's initial variables.

  Args:
    variables: "params" and the other collections.
    tx: the optimizer.
    key: of the randomness of steps.
    use_ema: whether there is a moving average.
    trainable: tells of a parameter's path whether it is trained; all if None.
  """
  collections = dict(variables)
  params = collections.pop("params")
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    collections=collections,
    opt_state=tx.init(trained.split(params, trainable)[0]),
    # A copy: donated buffers must not be shared between two leaves.
    ema=jax.tree.map(jnp.copy, variables) if use_ema else None,
    key=key,
  )


def update_ema(
  ema: Any,
  new: Any,
  decay: float,
  step: jax.Array,
  *,
  warmup: bool,
  every: int = 1,
) -> Any:
  """Moves the average towards `new`, other collections included.

  With `warmup` the decay is min(decay, (1 + t) / (10 + t)), t the moves done
  before this one (TensorFlow's ExponentialMovingAverage with num_updates, the
  rule of ResNet-RS), so that early averages are not stuck at the initial
  values.

  Args:
    ema: the average.
    new: what it follows, a tree like it.
    decay: share of the average that a move keeps.
    step: the number of updates done before the one that made `new`.
    warmup: see above.
    every: updates from one move to the next; the first move is after as many.
  """
  if warmup:
    t = (step // every).astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + t) / (10 + t))

  def move(ema: Any) -> Any:
    return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), ema, new)

  if every == 1:
    return move(ema)
  # A branch, so that no memory is read where nothing moves.
  return jax.lax.cond((step + 1) % every == 0, move, lambda ema: ema, ema)
