"""Learning-rate schedules over a whole run."""

import ml_collections
import optax

from training import durations

# The fields that not all of them use.
SCHEDULES = {
  "cosine": ("final_learning_rate",),
  "linear": ("final_learning_rate",),
  "constant": (),
  "stepwise": ("boundaries", "decay_factor"),
  "onecycle": ("final_learning_rate",),
}


def create_schedule(
  config: ml_collections.ConfigDict, clock: durations.Clock
) -> optax.Schedule:
  """Builds the learning rate as a function of the step.

  Args:
    config: `learning_rate` (the peak), `schedule` (one of SCHEDULES), `warmup`
      (a duration; linear from 0 to the peak), `final_learning_rate` (where
      cosine, linear and onecycle end), and for "stepwise" `boundaries`
      (durations from the start of the run) and `decay_factor` (applied at
      each). The warm-up of "onecycle" is half a cosine from a 25th of the peak.
    clock: what durations refer to; needs `total_steps`.

  Returns:
    A schedule: step -> learning rate. Steps count updates already done, so the
    first update uses schedule(0).

  Raises:
    ValueError: for an unknown schedule or a warm-up longer than the run.
  """
  warmup = clock.steps(config.warmup, "optimizer.warmup")
  if not clock.total_steps:
    # A run that only evaluates has no step to be warmed up.
    warmup = 0
  if warmup > clock.total_steps:
    raise ValueError(
      f"optimizer.warmup={config.warmup!r} is {warmup} steps, longer than the "
      f"run of {clock.total_steps} steps."
    )
  peak = config.learning_rate
  if config.schedule == "onecycle":
    return _one_cycle(config, warmup, clock.total_steps)
  after_warmup = max(clock.total_steps - warmup, 1)
  if config.schedule == "cosine":
    main = optax.cosine_decay_schedule(
      peak, after_warmup, alpha=_end_ratio(config)
    )
  elif config.schedule == "linear":
    main = optax.linear_schedule(peak, config.final_learning_rate, after_warmup)
  elif config.schedule == "constant":
    main = optax.constant_schedule(peak)
  elif config.schedule == "stepwise":
    main = _stepwise(config, clock, warmup)
  else:
    raise ValueError(
      f"optimizer.schedule={config.schedule!r} is not known; choose from "
      f"{', '.join(SCHEDULES)}."
    )
  if not warmup:
    return main
  ramp = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([ramp, main], [warmup])


def _end_ratio(config: ml_collections.ConfigDict) -> float:
  if config.learning_rate == 0:
    return 0.0
  return config.final_learning_rate / config.learning_rate


def _one_cycle(
  config: ml_collections.ConfigDict, warmup: int, total_steps: int
) -> optax.Schedule:
  """Two half cosines, "Super-Convergence" (1708.07120) as PyTorch has it.

  The learning rate only: PyTorch's default cycles the momentum as well.
  """
  # The peak is the last step of the warm-up, and the last step has the end.
  top = max(warmup - 1, 1)
  end = max(total_steps - 1, top + 1)
  return optax.piecewise_interpolate_schedule(
    "cosine", config.learning_rate / 25, {top: 25.0, end: _end_ratio(config)}
  )


def _stepwise(
  config: ml_collections.ConfigDict, clock: durations.Clock, warmup: int
) -> optax.Schedule:
  # Boundaries are given from the start of the run, optax counts them from the
  # end of the warm-up.
  boundaries = [
    clock.steps(b, "optimizer.boundaries") - warmup for b in config.boundaries
  ]
  if any(b < 0 for b in boundaries):
    raise ValueError(
      f"optimizer.boundaries={tuple(config.boundaries)} start before the "
      f"warm-up of {config.warmup!r} ends."
    )
  # Several may fall on one step, in a short run.
  factors = {b: config.decay_factor ** boundaries.count(b) for b in boundaries}
  return optax.piecewise_constant_schedule(config.learning_rate, factors)
