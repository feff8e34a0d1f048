r"""Turns a run's tables of relative biases into factors.

  python -m tools.factor_bias --weights=runs/digits --out=runs/digits_factors
  python eval.py --weights=runs/digits_factors

"FlashBias" (arXiv 2505.12044), for MaxViT: a layer whose biases keep `--energy`
of their squares at a rank of at most `--limit` gets factors of that rank, the
others keep their tables. What became of each is printed: the ranks that its
heads need, the largest error eps of a bias, and e^(2 eps) - 1, which bounds how
much the weights of a query change in sum. Then both models are measured on the
evaluation split. `--out` is a run of no steps that evaluates, and trains on
with factors, as any other; without it nothing is written.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags

import experiment
import storage
from experiment.batches import create_train_batches
from experiment.weights import load_weights
from models import bias_factors
from training import checkpoints, cli, records
from training.console import say


def factor(
  config: ml_collections.ConfigDict,
  weights: str,
  *,
  energy: float = 0.995,
  limit: int = 16,
  out: str = "",
  step: str = "last",
  use_ema: bool = True,
) -> tuple[list[bias_factors.Layer], dict[str, Any]]:
  """Converts, measures and writes.

  Args:
    config: of the run, a classification.
    weights: as for `eval.py`.
    energy: see `bias_factors.convert`.
    limit: likewise.
    out: workdir of what is written, where no run is; nothing is if empty.
    step: of a workdir, the checkpoint: "last", "best" or a number.
    use_ema: take the moving average if the run kept one.

  Returns:
    (layers, result): what became of each layer; the metrics of the model with
    tables and, as `factors_accuracy` and `factors_loss`, with factors; the
    mean cosine of their logits, and the share of images that they agree on.

  Raises:
    ValueError: if the weights do not fit, the model has no tables, or there is
      a run in `out`.
    CheckpointError: if a checkpoint cannot be read or written.
  """
  if out and (storage.path(out) / "config.json").exists():
    raise ValueError(f"out={out!r} holds a run; choose another folder.")
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    variables = load_weights(setup, weights, step=step, use_ema=use_ema)
    model, converted, layers = bias_factors.convert(
      setup.task.model, jax.device_get(variables), energy=energy, limit=limit
    )
    config = config.copy_and_resolve_references()
    with config.unlocked():
      config.model.bias_ranks = dict(model.bias_ranks)
    factored = experiment.create_evaluation(config, info=setup.task.info)
    converted = jax.device_put(
      converted, jax.tree.map(lambda x: x.sharding, factored.variables)
    )
    result = _compare(setup, factored, variables, converted)
  if out:
    _write(config, converted, result, out)
  return layers, result


def _compare(setup, factored, variables, converted) -> dict[str, Any]:
  """Runs both models through the evaluation split."""
  task, other = setup.task, factored.task

  def step(variables, batch):
    both = [
      one.model.apply(own, one.normalize(batch["image"]))
      for one, own in zip((task, other), variables, strict=True)
    ]
    unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in both]
    same = both[0].argmax(-1) == both[1].argmax(-1)
    after = other.evaluate_step(variables[1], batch)
    return {
      **task.evaluate_step(variables[0], batch),
      "factors_accuracy": after["accuracy"],
      "factors_loss": after["loss"],
      "cosine": (unit[0] * unit[1]).sum(-1) @ batch["mask"],
      "agreement": same @ batch["mask"],
    }

  return task.evaluate_split(setup.mesh, step).run((variables, converted))


def _write(config, variables, result, out: str) -> None:
  """Writes a run of no steps."""
  setup = experiment.create(config)
  with jax.set_mesh(setup.mesh):
    state = setup.init()
    collections = dict(variables)
    params = collections.pop("params")
    # Copies, since a donated buffer must not be shared between two leaves.
    ema = None if state.ema is None else jax.tree.map(jnp.copy, variables)
    state = state.replace(params=params, collections=collections, ema=ema)
    batches = create_train_batches(setup)
    record = {"seconds": 0.0, "evaluated": True, "data": batches.get_state()}
    batches.close()
    store = checkpoints.Checkpoints(
      out, config.checkpoint, setup.task.directions
    )
    metrics = {
      name: result[f"factors_{name}"]
      for name in ("accuracy", "loss")
      if name in setup.task.metric_names()
    }
    store.save(0, state, record, metrics=metrics)
    store.wait()
    store.close()
  records.write_config(out, config)


def describe(layers: Sequence[bias_factors.Layer], result: Any) -> str:
  """Returns a table of layers and two lines of metrics, for people."""
  width = max(len(layer.name) for layer in layers)
  head = f"{'layer':{width}}  tokens  rank    error eps  e^(2 eps)-1  of heads"
  lines = [head]
  for layer in layers:
    made = f"{layer.rank:5}  {layer.error:11.2e}  {layer.bound:11.2e}"
    if not layer.rank:
      made = f"table  {'':11}  {'':11}"
    ranks = " ".join(map(str, layer.ranks))
    lines.append(f"{layer.name:{width}}  {layer.tokens:6} {made}  {ranks}")
  lines += [
    f"tables:  accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f}",
    f"factors: accuracy {result['factors_accuracy']:.2%}, loss "
    f"{result['factors_loss']:.4f}; cosine of logits {result['cosine']:.6f}, "
    f"same class for {result['agreement']:.2%}",
  ]
  return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
  """Reads the flags and runs."""
  del argv
  args = flags.FLAGS
  cli.check_weights(args.config, args.weights)
  made = factor(
    args.config,
    args.weights,
    energy=args.energy,
    limit=args.limit,
    out=args.out,
    step=args.step,
    use_ema=args.ema,
  )
  say(describe(*made))


if __name__ == "__main__":
  cli.define_config_flag(
    experiment.optional_fields,
    load_run=experiment.load_trained,
    default="weights",
  )
  cli.define_weights_flags()
  flags.DEFINE_float("energy", 0.995, "Share of the squares that is kept.")
  flags.DEFINE_integer("limit", 16, "Highest rank of factors.")
  flags.DEFINE_string("out", "", "Workdir to write; nothing if empty.")
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
