"""One training step and one evaluation step, as jitted functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from training import sharding, train_state, trained

Batch = dict[str, jax.Array]


def make_train_step(
  task: Any,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: ml_collections.ConfigDict,
  *,
  accumulation_steps: int = 1,
  trainable: trained.Trainable | None = None,
) -> Callable[
  [train_state.TrainState, Batch], tuple[Any, dict[str, jax.Array]]
]:
  """Builds `step(state, batch) -> (state, metrics)`, to be jitted.

  With `accumulation_steps` = n the batch is cut into n micro-batches
  that a scan walks through; gradients and metrics are sums, divided once by the
  weight of the whole batch, so the update is that of the large batch. Batch
  normalisation normalises within each micro-batch, and its running statistics,
  as all collections beside the parameters, move once, by the mean of what the
  micro-batches make of them, by their weights.

  Args:
    task: `prepare`, `weight`, `loss` and `counts` of a `tasks.Task`.
    tx: the optimizer.
    schedule: step -> learning rate, for the metrics.
    config: `ema.decay` (0: none), `ema.warmup` and `ema.every`.
    accumulation_steps: how many micro-batches a batch is cut into.
    trainable: tells of a parameter's path whether it is trained; all if None.
      Of the others no gradient is computed, and they stay what they are to the
      bit. Not so other collections, as statistics: these are the task's.

  Returns:
    The step. Metrics are float32 scalars: means, the task's counts,
    `learning_rate`, and the global norms `grad_norm`, of what is trained, and
    `param_norm`.
  """
  n = accumulation_steps

  def step(state, batch):
    key = jax.random.fold_in(state.key, state.step)
    prepare_key, loss_key = jax.random.split(key)
    batch = task.prepare(prepare_key, batch)
    weight = task.weight(batch)
    # Where nothing counts the sums are 0, too.
    weight = jnp.where(weight > 0, weight, 1.0)
    moving, frozen = trained.split(state.params, trainable)

    def mean_loss(moving, micro_batch, key):
      params = trained.join(moving, frozen)
      variables = {"params": params, **state.collections}
      loss, aux = task.loss(variables, micro_batch, key)
      return loss / weight, aux

    def gradient(micro_batch, key):
      grads, (collections, sums) = jax.grad(mean_loss, has_aux=True)(
        moving, micro_batch, key
      )
      share = sums["weight"] / weight
      return grads, jax.tree.map(lambda x: x * share, collections), sums

    if n == 1:
      grads, collections, sums = gradient(batch, loss_key)
    else:
      grads, collections, sums = _accumulate(
        gradient, _split(batch, n), jax.random.split(loss_key, n)
      )
    # Where nothing counted at all they stay what they are.
    collections = jax.tree.map(
      lambda new, old: jnp.where(sums["weight"] > 0, new, old),
      collections,
      state.collections,
    )
    updates, opt_state = tx.update(grads, state.opt_state, moving)
    params = trained.join(optax.apply_updates(moving, updates), frozen)
    ema = state.ema
    if ema is not None:
      ema = train_state.update_ema(
        ema,
        {"params": params, **collections},
        config.ema.decay,
        state.step,
        warmup=config.ema.warmup,
        every=config.ema.every,
      )
    metrics = {
      name: value if name in task.counts else value / weight
      for name, value in sums.items()
      if name != "weight"
    }
    metrics |= {
      "learning_rate": schedule(state.step),
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
    }
    new_state = state.replace(
      step=state.step + 1,
      params=params,
      collections=collections,
      opt_state=opt_state,
      ema=ema,
    )
    return new_state, metrics

  return step


def _split(batch: Batch, n: int) -> Batch:
  """Cuts `[batch, ...]` into `[n, batch / n, ...]`."""
  # Every n-th row and not a run of rows: a run may lie on one device, and then
  # each micro-batch would have to be spread again.
  return jax.tree.map(
    lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch
  )


def _accumulate(grad_fn, micro_batches: Batch, keys: jax.Array) -> Any:
  """Sums `grad_fn(micro_batch, key)` over the leading axis."""
  first = jax.tree.map(lambda x: x[0], micro_batches)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(grad_fn, first, keys[0]),
  )

  def body(total, inputs):
    return jax.tree.map(jnp.add, total, grad_fn(*inputs)), None

  total, _ = jax.lax.scan(body, zeros, (micro_batches, keys))
  return total


def check_accumulation(batch_size: int, n: int, mesh: Mesh) -> None:
  """Raises ValueError if n micro-batches cannot be split over the mesh."""
  unit = max(n, 1) * sharding.batch_parts(mesh)
  if n < 1 or batch_size % unit:
    raise ValueError(
      f"accumulation_steps={n} does not cut batch_size={batch_size} into "
      f"micro-batches for the mesh {dict(mesh.shape)}: accumulation_steps must "
      f"be at least 1 and batch_size a multiple of {unit}."
    )
