"""Trains the model that a config describes.

  python train.py --config=configs/digits.py --workdir=runs/digits

The same command goes on where a stopped or killed run left off. Fields are
overridden on the command line: --config.optimizer.learning_rate=1e-3.
"""

import contextlib
from collections.abc import Sequence

import jax
import ml_collections
from absl import flags

import experiment
from experiment import memory, weights
from experiment.batches import create_train_batches
from training import (
  checkpoints,
  cli,
  compilation_cache,
  durations,
  evaluation,
  hosts,
  metrics,
  phases,
  preemption,
  profiling,
  records,
  reporting,
  summary,
  train_state,
  watching,
)
from training.console import say


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  override_config: bool = False,
  profile: bool = False,
  show: bool = True,
) -> train_state.TrainState:
  """Trains from the newest checkpoint in `workdir`, or from scratch.

  Args:
    config: as `configs.common` describes.
    workdir: checkpoints, metrics.jsonl, TensorBoard events, pictures and the
      record of the run go there.
    override_config: accept a config that differs from the workdir's.
    profile: write an XProf trace of a few steps to `<workdir>/profile`.
    show: draw curves at the end and what the model does, as a sample; it takes
      longer than the training of a small model.

  Returns:
    The state after the last step, or after the one at which SIGTERM came.

  Raises:
    ValueError: for a config or workdir that does not fit, before any training.
    CheckpointError: if no checkpoint can be read, or one cannot be written.
    MetricsError: if the metrics cannot be written.
    NonFiniteError: if the run diverges; the checkpoints before it stand.
    OutOfMemoryError: if the steps do not fit a device.
    HostsError: if processes differ in the config, the code or the workdir, or
      one did not come.
  """
  timing = phases.Phases()
  records.check_hosts(config)
  setup = experiment.create(config)
  mesh, clock, task = setup.mesh, setup.clock, setup.task
  batches = create_train_batches(setup)
  total_steps = clock.total_steps
  save_every = clock.steps(config.checkpoint.every, "checkpoint.every")
  evaluations = task.evaluations(mesh)
  periods = [
    clock.steps(each.every or config.evaluate_every, "evaluate_every")
    for each in evaluations
  ]
  experiment.check_workdir(workdir, config, task, override=override_config)
  hosts.check_folder(workdir)
  store = checkpoints.Checkpoints(workdir, config.checkpoint, task.directions)

  with (
    jax.set_mesh(mesh),
    preemption.PreemptionGuard() as guard,
    contextlib.ExitStack() as stack,
  ):
    stack.enter_context(memory.explained(setup))
    stack.callback(batches.close)
    stack.callback(store.close)
    with timing.during("restoring"):
      restored = store.restore(setup.state)
    if restored is None:
      state = weights.initial_state(setup)
      # A run of no steps ends evaluated and saved as others do.
      record = {"seconds": 0.0, "evaluated": total_steps > 0}
    else:
      state, record = restored
      batches.set_state(record["data"])
      say(f"going on from step {int(state.step)} of {total_steps}")
    start = records.StartRecord(workdir, mesh, task.record())
    # Checkpoints of before phases were kept have the sum of all.
    past = record.get("phases") or {"not measured": record["seconds"]}
    timing.go_on(past, start.earlier)
    heartbeat = phases.Heartbeat(
      timing, lambda: start.write_seconds(timing.of_this_start())
    )
    stack.callback(heartbeat.close)
    with timing.during("compiling"):
      train_step = experiment.compile_steps(setup, evaluations[0])
    say(compilation_cache.describe())
    step = int(state.step)
    records.write_config(workdir, config)
    records.write_files(workdir, task.files())
    writer = stack.enter_context(
      metrics.MetricWriter(
        workdir, resume_step=step, evaluated=record["evaluated"]
      )
    )
    progress = metrics.ProgressLine(
      total_steps,
      config.batch_size * task.units_per_example,
      unit=task.unit,
      shown=task.progress,
    )
    stack.callback(progress.pause)
    reporter = reporting.StepReporter(writer, progress, timing)
    profiler = profiling.StepProfiler(workdir, first_step=step, enabled=profile)
    stack.callback(profiler.close)
    stack.push(watching.tell)

    def due_evaluations() -> list[evaluation.Evaluation]:
      return [
        each
        for each, every in zip(evaluations, periods, strict=True)
        if durations.is_due(step, every, total_steps)
      ]

    def write_evaluation(name: str, result: dict[str, float]) -> None:
      writer.write(step, {f"{name}/{k}": v for k, v in result.items()})
      if name == evaluations[0].name:
        say(f"step {step}: {task.describe(result)}")

    def run_evaluations() -> dict[str, float]:
      with timing.during("evaluating"):
        return evaluation.run_due(
          due_evaluations(),
          state.variables(),
          guard.should_stop,
          write_evaluation,
        )

    def save(result: dict[str, float] | None, *, evaluated: bool) -> None:
      record = {
        "phases": timing.seconds(),
        "evaluated": evaluated,
        "data": batches.get_state(),
      }
      with timing.during("saving"):
        # Rows of metrics that the checkpoint is past must not be lost.
        writer.flush()
        store.save(step, state, record, metrics=result)

    try:
      if not record["evaluated"]:
        result = run_evaluations()
        if restored is None:
          save(result, evaluated=True)
      timing.enter(phases.STEPS)
      while step < total_steps and not guard.should_stop():
        profiler.before_step(step)
        rows = next(batches)
        batch = evaluation.put_batch({n: rows[n] for n in setup.batch}, mesh)
        state, step_metrics = train_step(state, batch)
        step += 1
        reporter.push(step, step_metrics)
        evaluate_now = bool(due_evaluations())
        save_now = durations.is_due(step, save_every, total_steps)
        if evaluate_now or save_now or guard.should_stop():
          # First the pending metrics: a diverged state is never saved.
          reporter.flush()
          progress.pause()
          try:
            result = run_evaluations() if evaluate_now else None
          except evaluation.EvaluationInterrupted:
            save(None, evaluated=False)
          else:
            save(result, evaluated=True)
          progress.resume()
      timing.enter("saving")
      store.wait()
    except evaluation.EvaluationInterrupted:
      say("stopped before the evaluation that was left to do")
    except (reporting.NonFiniteError, metrics.MetricsError) as error:
      store.wait()
      raise type(error)(
        f"{error} Training stops; the checkpoints of steps {store.steps()} in "
        f"{store.directory} are intact, and from before it."
      ) from None

    # All is trained and saved: from here on nothing makes the run a failure.
    with summary.attempt("closing the files of the run"):
      stack.close()
    say(f"took {timing.describe()}")
    if guard.should_stop():
      say(f"stopped at step {step}, saved; the same command goes on from there")
    elif show:
      summary.finish(task, state.variables(), evaluations, workdir, store)
  return state


def main(argv: Sequence[str]) -> None:
  """Reads the flags and runs."""
  del argv
  with cli.joined():
    train_and_evaluate(
      flags.FLAGS.config,
      flags.FLAGS.workdir,
      override_config=flags.FLAGS.override_config,
      profile=flags.FLAGS.profile,
    )


if __name__ == "__main__":
  cli.define_config_flag(
    experiment.optional_fields, load_run=experiment.load_config
  )
  flags.DEFINE_string("workdir", None, "Where the run keeps everything.")
  flags.DEFINE_bool(
    "override_config",
    False,
    "Go on in a workdir whose saved config differs.",
  )
  flags.DEFINE_bool("profile", False, "Write an XProf trace of a few steps.")
  cli.define_hosts_flags()
  flags.mark_flags_as_required(["config", "workdir"])
  cli.run(
    main,
    cli.USER_ERRORS
    + (
      checkpoints.CheckpointError,
      memory.OutOfMemoryError,
      metrics.MetricsError,
      reporting.NonFiniteError,
    ),
  )
