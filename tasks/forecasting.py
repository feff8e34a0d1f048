"""Forecasts of a dynamical system, and for how long they are of use."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline import dynamics
from models import forecasting
from tasks import forecast_picture, forecast_quality
from tasks.base import Batch, Shown, Task, Variables, create_model
from training import evaluation
from training.ranges import Number


class Forecasting(Task):
  """Predicts the next state; sums are over states that are predicted.

  Training is *teacher-forced*: each input is the true state, with `noise`. With
  `data.ahead` the last states of an example are reached from the model's own
  output, through which the gradient goes. With `data.order="consecutive"` it is
  *stateful*: each row goes on from what the model carried out of the batch
  before, without a gradient, and anew where its trajectory begins. What rows
  carry is the collection "carry", so a run that is stopped goes on with it.

  Evaluation gives the model the first `data.warm_up` states of trajectories
  that it has never seen and lets it go on from its own output; see
  `tasks.forecast_quality`.
  """

  room = dynamics
  unit = "state"
  directions = types.MappingProxyType({"valid_time": "max", "loss": "min"})
  curves = ("loss", "valid_time")
  given = ("dtype", "size")
  added = ("carry",)
  ranges = types.MappingProxyType(
    {
      "noise": Number(0),
      "threshold": Number(0, above=True),
      "strict_threshold": Number(0, above=True),
      "lyapunov_exponent": Number(0),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model.

    Raises:
      ValueError: for a field of the config that does not fit, as a stateless
        model where rows go on from batch to batch.
    """
    super().__init__(config, info)
    self.model = create_model(config, "forecasting", size=info.size)
    self.stateful = config.data.order == "consecutive"
    self.units_per_example = config.data.length + config.data.ahead
    self._check()

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only this task has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="forecasting_gru"))
    config.data = dynamics.default_config()
    # Deviation of what is added to inputs in training, over that of the data.
    config.noise = 0.0
    # A forecast is valid until its error, over the deviation of the data, is as
    # large; the second is reported beside the first.
    config.threshold = 0.5
    config.strict_threshold = 0.05
    # Of the system, per unit of time; 0 reports plain time.
    config.lyapunov_exponent = 0.0
    best = ml_collections.ConfigDict(dict(best_metric="valid_time"))
    config.checkpoint = best
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """states [rows, time, size], and begins or weights [rows]."""
    data = self.config.data
    if train:
      time, other = data.length + 1 + data.ahead, {"begins": jnp.bool_}
    else:
      time, other = data.warm_up + data.horizon, {"weights": jnp.float32}
    return {
      "states": jax.ShapeDtypeStruct((rows, time, self.info.size), jnp.float32),
      **{n: jax.ShapeDtypeStruct((rows,), dtype) for n, dtype in other.items()},
    }

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model, and what rows carry."""
    variables = self.model.init(key, **self.model.example_inputs())
    if self.stateful:
      variables["carry"] = self.model.init_carry(self.config.batch_size)
    return variables

  def received(self, variables: Variables) -> Variables:
    """Without what the rows of the other run carried."""
    return {n: x for n, x in variables.items() if n != "carry"}

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Makes inputs with noise, and targets without."""
    states = batch["states"]
    inputs = states[:, : self.config.data.length]
    if self.config.noise:
      noise = jax.random.normal(key, inputs.shape)
      inputs = inputs + self.config.noise * noise
    return {
      "inputs": inputs,
      "targets": states[:, 1:],
      "begins": batch["begins"],
    }

  def weight(self, batch: Batch) -> jax.Array:
    """How many states are to be predicted."""
    rows, time, _ = batch["targets"].shape
    return jnp.float32(rows * time)

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed squared error, of each state the mean of its numbers."""
    del key
    carry = None
    if self.stateful:
      carry = _begun(variables["carry"], batch["begins"])
    params = {"params": variables["params"]}
    made, carry = self.model.apply(params, batch["inputs"], carry, train=True)
    collections = (
      {"carry": jax.lax.stop_gradient(carry)} if self.stateful else {}
    )
    if self.config.data.ahead:
      _, more = forecasting.go_on(
        self.model, params, made[:, -1], carry, self.config.data.ahead
      )
      made = jnp.concatenate([made, more], axis=1)
    loss = jnp.square(made - batch["targets"]).mean(-1).sum()
    return loss, (collections, {"weight": self.weight(batch), "loss": loss})

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over trajectories; see `forecast_quality.sums`."""
    given, truth = jnp.split(batch["states"], [self.config.data.warm_up], 1)
    made = self._forecast(variables, given)
    config = self.config
    return forecast_quality.sums(
      made,
      truth,
      batch["weights"],
      threshold=config.threshold,
      strict_threshold=config.strict_threshold,
    )

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """See `forecast_quality.summarize`; times are Lyapunov times if known.

    Raises:
      ValueError: if there was no trajectory.
    """
    unit = self.info.interval * (self.config.lyapunov_exponent or 1.0)
    return forecast_quality.summarize(super().summarize(totals), totals, unit)

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "valid for 2.31 (median 2.10), error of one step 0.0012"."""
    text = (
      f"valid for {result['valid_time']:.3f} (median "
      f"{result['valid_time_median']:.3f}) on {result['trajectories']} "
      f"trajectories, error of one step {result['loss'] ** 0.5:.5f}"
    )
    if result["complete"]:
      text += f", {result['complete']:.1%} of them to the end"
    if result["diverged"]:
      text += f", {result['diverged']:.1%} diverged"
    return text

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """What `forecast_quality.summarize` has; None for what is not finite."""
    return {n: x if np.isfinite(x) else None for n, x in result.items()}

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[evaluation.SplitEvaluation],
    workdir: str,
  ) -> Shown:
    """Draws the forecast of the first trajectory into forecast.png."""
    states = next(iter(evaluations[0].batches))["states"][:1]
    given, truth = np.split(states, [self.config.data.warm_up], axis=1)
    made = jax.jit(self._forecast)(variables, given)
    unit = self.info.interval * (self.config.lyapunov_exponent or 1.0)
    name = forecast_picture.write(
      workdir,
      truth[0],
      np.asarray(made[0]),
      unit=unit,
      label="Lyapunov times" if self.config.lyapunov_exponent else "time",
    )
    return Shown(files=(name,))

  def _forecast(self, variables: Variables, given: jax.Array) -> jax.Array:
    params = {"params": variables["params"]}
    return forecasting.forecast(
      self.model, params, given, self.config.data.horizon
    )

  def _check(self) -> None:
    data, model = self.config.data, self.model
    if model.stateless and self.stateful:
      raise ValueError(
        "data.order='consecutive' lets rows go on from batch to batch, but the "
        "model is stateless: it needs data.order='shuffled', or a cell, or "
        "model.recurrence=True."
      )
    if model.stateless and data.length > model.window:
      raise ValueError(
        f"data.length={data.length} states are more than model.window="
        f"{model.window}, all that a stateless model sees."
      )
    if self.stateful and self.config.accumulation_steps > 1:
      raise ValueError(
        f"accumulation_steps={self.config.accumulation_steps}, but with "
        "data.order='consecutive' each row of a batch has a state of its own: "
        "it must be 1."
      )


def _begun(carry: forecasting.Carry, begins: jax.Array) -> forecasting.Carry:
  """What rows carry, emptied where a trajectory begins [batch]."""

  def one(x):
    first = begins.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(first, 0, x)

  return jax.tree.map(one, carry)
