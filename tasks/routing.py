"""Teaches routers which rows need full attention."""

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from models import router, taps
from tasks.base import Batch, Variables
from tasks.sequence_labeling import SequenceLabeling
from training import durations, paths, ranges
from training.ranges import Number

_PARAMS, _STATE = "multipliers", "routing"


class Routing(SequenceLabeling):
  """Labels sequences with routed layers, of which a share shall stream.

  "Flux Attention" (arXiv 2604.07394). Each group of the source has a target of
  its sparsity s, the share of a row's routed layers that stream. What is
  minimised is the loss of the labels and, as a mean over the groups that a
  batch has and their rows, l1 |s - t| + l2 (s - t)^2, of which l1 and l2 are
  trained too, to make it large; optimizers add weight decay to them, as in the
  reference, and they may become negative. The model is run as in evaluation,
  but that routers draw, with a temperature that falls by a half cosine.

  Weights come from a model whose layers are not routed, or from one of this
  task.
  """

  added = ("router", _PARAMS, _STATE)
  curves = ("loss", "accuracy", "sparsity")
  ranges = types.MappingProxyType(
    {
      "routing.first_temperature": Number(0, above=True),
      "routing.last_temperature": Number(0, above=True),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self._check()
    clock = durations.Clock(info.num_train_examples, config.batch_size)
    total = clock.steps(config.train_for, "train_for")
    clock = durations.Clock(info.num_train_examples, config.batch_size, total)
    self._cooling = clock.steps(config.routing.cooling, "routing.cooling")

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """Those of `SequenceLabeling`, and "routing"."""
    config = SequenceLabeling.default_config()
    config.routing = ml_collections.ConfigDict(
      dict(
        targets=(1.0, 0.45),  # The sparsity of each group of the source.
        first_temperature=1.5,
        last_temperature=1.0,
        cooling="60 percent",  # How long the temperature falls.
        # What learns beside the multipliers, by path as `training.paths` says.
        trained=("router",),
      )
    )
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """That of `SequenceLabeling`, with group int32 [rows]."""
    spec = super().batch_spec(rows, train=train)
    return {**spec, "group": jax.ShapeDtypeStruct((rows,), jnp.int32)}

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model, the multipliers, and the step."""
    key, *keys = jax.random.split(key, 3)
    variables = super().init(key)
    shape = (len(self.info.groups),)
    multipliers = {
      name: jax.random.uniform(key, shape, maxval=0.5)
      for name, key in zip(("linear", "quadratic"), keys, strict=True)
    }
    params = {**variables["params"], _PARAMS: multipliers}
    # A float, since collections are averaged over micro-batches.
    state = {"step": jnp.zeros((), jnp.float32)}
    return {**variables, "params": params, _STATE: state}

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Adds what each row's penalty is multiplied by, share [rows].

    The sum of shares of a group is the same for all groups that a batch has,
    and of all the weight that sums are divided by.
    """
    batch = super().prepare(key, batch)
    member = jax.nn.one_hot(batch["group"], len(self.info.groups))
    count = member.sum(0)
    groups = (count > 0).sum()
    share = self.weight(batch) / (groups * (member @ count))
    return {**batch, "share": share}

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed cross entropy and penalty; sums have them apart."""
    step = variables[_STATE]["step"]
    logits, sparsity = self._read(
      variables, batch, self.temperature(step), rngs={"routing": key}
    )
    loss = self.nats(logits, batch)
    each = self._penalty(variables["params"][_PARAMS], sparsity, batch["group"])
    penalty = (batch["share"] * each).sum()
    collections = {n: x for n, x in variables.items() if n != "params"}
    collections[_STATE] = {"step": step + 1}
    sums = {
      "weight": self.weight(batch),
      "loss": loss,
      "penalty": penalty,
      "sparsity": (batch["share"] * sparsity).sum(),
    }
    return loss + penalty, (collections, sums)

  def temperature(self, step: jax.Array) -> jax.Array:
    """The temperature of a step, a float32 scalar."""
    first = self.config.routing.first_temperature
    last = self.config.routing.last_temperature
    done = jnp.minimum(step / max(self._cooling, 1), 1.0)
    return last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * done))

  def _penalty(self, multipliers, sparsity, group) -> jax.Array:
    """Of each row, [rows]; its gradient makes multipliers climb."""
    linear, quadratic = (
      # The value stays, the sign of the gradient turns.
      (2 * jax.lax.stop_gradient(x) - x)[group]
      for x in (multipliers["linear"], multipliers["quadratic"])
    )
    targets = jnp.asarray(self.config.routing.targets, jnp.float32)
    away = sparsity - targets[group]
    return linear * jnp.abs(away) + quadratic * jnp.square(away)

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Those of `SequenceLabeling`, sparsity, and that of groups."""
    logits, sparsity = self._read(variables, batch, None)
    rows = batch["weights"].sum(1) * sparsity
    member = jax.nn.one_hot(batch["group"], len(self.info.groups))
    return {
      **self._sums(logits, batch),
      "sparsity": rows.sum(),
      "group_sparsity": rows @ member,
    }

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, also of groups.

    Raises:
      ValueError: if nothing counted.
    """
    totals = dict(totals)
    sparsity = totals.pop("group_sparsity")
    result = super().summarize(totals)
    weights = totals["group_weight"]
    for name, own, weight in zip(
      self.info.groups, sparsity, weights, strict=True
    ):
      if weight:
        result[f"sparsity_{name}"] = float(own / weight)
    return result

  def trainable(self) -> Callable[[str], bool]:
    """The multipliers and what `config.routing.trained` takes."""
    patterns = (_PARAMS, *self.config.routing.trained)
    return lambda name: paths.first_match(patterns, name) is not None

  def _read(self, variables, batch, temperature, **options):
    """Returns logits of targets, and each row's sparsity [rows]."""
    variables = {n: x for n, x in variables.items() if n != _STATE}
    given, named = self.inputs(batch)
    with router.routing(prompt=_prompt(batch), temperature=temperature):
      logits, routes = taps.read(
        self.model,
        variables,
        *given,
        **named,
        names=["*/route"],
        **options,
      )
    return logits, 1 - jnp.stack(list(routes.values())).mean(0)

  def _check(self) -> None:
    if "routed" not in self.model.mixers:
      raise ValueError(
        f"model.mixers={self.model.mixers} has no 'routed' layer, whose "
        f"routers task={self.config.task!r} trains."
      )
    targets, groups = self.config.routing.targets, self.info.groups
    if len(targets) != len(groups) or not groups:
      raise ValueError(
        f"routing.targets={targets} must have a number for each group of "
        f"data.source={self.config.data.source!r}, which has {groups}."
      )
    if not all(ranges.is_number(t) and 0 <= t <= 1 for t in targets):
      raise ValueError(
        f"routing.targets={targets} are shares of layers, from 0 to 1."
      )
    for name, arrays in (
      ("training", self.info.arrays),
      ("evaluation", self.info.eval_arrays),
    ):
      if arrays["group"].ndim or arrays["targets"].size == 1:
        raise ValueError(
          f"data.source={self.config.data.source!r} has in {name} groups of "
          f"shape {arrays['group'].shape} and targets of shape "
          f"{arrays['targets'].shape}; routing needs one group for a row and "
          "targets at places."
        )
    paths.check_patterns("routing.trained", self.config.routing.trained)


def _prompt(batch: Batch) -> jax.Array:
  """The tokens up to the first with a label, bool [rows, length]."""
  counts = batch["weights"] > 0
  return jnp.cumsum(counts, axis=1) - counts == 0
