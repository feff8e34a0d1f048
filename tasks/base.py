"""What a job is to the training loop: the one contract of all tasks.

The loop, the step, checkpoints and metrics know arrays with a spec, a weight to
divide by, a headline metric and evaluations that run. All else is a task's.
"""

import abc
import pathlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import models
from training import evaluation, hosts
from training.ranges import Number, OneOf

Batch = dict[str, jax.Array]
# "params" and whatever other collections the model has.
Variables = dict[str, Any]
# What a program shows while it goes through something: an iterable like it.
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


class Shown(NamedTuple):
  """What a person sees when training ends.

  Attributes:
    files: that were written to the workdir, by name.
    text: to read, as a sample.
    commands: to go on with.
  """

  files: Sequence[str] = ()
  text: str = ""
  commands: Sequence[str] = ()


class Task(abc.ABC):
  """One job; a subclass is one file of `tasks/`, and a name in `tasks.TASKS`.

  Sums are over what counts, and never divided: only the caller knows the whole
  batch, or the whole split. Attributes that say so are of the class.

  Attributes:
    config: of the run.
    info: what `dataset_info` returned.
    model: the Flax module.
    unit: what `weight` counts and throughput is in, one of it, as "image".
    units_per_example: how many of them an example has at most.
    directions: of each metric that a checkpoint can be the best by, "min" or
      "max", whichever is better; of the class.
    counts: which sums are numbers of something, and not divided; of the class.
    progress: metrics of the progress line, each with a format; of the class.
    curves: metrics that are drawn when training ends; of the class.
    ranges: of the numbers of `default_config`; of the class.
    given: fields of the model that the data and the config give; of the class.
    added: which parameters and collections weights from elsewhere need not
      have, as patterns of `training.paths`; they begin anew then; of the class.
    room: of the data: the module of `input_pipeline` with `dataset_info`,
      `num_train_examples`, `train_iterator` and `eval_batches`; of the class.
    evaluate_options: of `evaluate`, each with its default and a line that says
      what it is; of the class.
    sample_options: likewise, of `sample`.
  """

  config: ml_collections.ConfigDict
  info: Any
  model: nn.Module
  unit: str
  units_per_example: int = 1
  directions: Mapping[str, str]
  counts: Sequence[str] = ()
  progress: Mapping[str, str] = types.MappingProxyType({"loss": ".4f"})
  curves: Sequence[str] = ("loss",)
  ranges: Mapping[str, Number | OneOf] = types.MappingProxyType({})
  given: Sequence[str] = ("dtype",)
  added: Sequence[str] = ()
  room: Any
  evaluate_options: Mapping[str, tuple[Any, str]] = types.MappingProxyType({})
  sample_options: Mapping[str, tuple[Any, str]] = types.MappingProxyType({})

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    self.config = config
    self.info = info

  @staticmethod
  @abc.abstractmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields of a config that this task has beside the loop's.

    Among them "data", and "checkpoint.best_metric", the headline.
    """

  @abc.abstractmethod
  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch of `rows` examples, before there is any."""

  @abc.abstractmethod
  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""

  def received(self, variables: Variables) -> Variables:
    """Turns the variables of another run, of any task, into those of this one.

    Before they are compared with those of `init`, and what they may lack
    (`added`) begins anew.
    """
    return variables

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Turns a whole training batch into what `loss` takes.

    Examples stay on the first axis of each array, as the result may be cut into
    micro-batches.
    """
    del key
    return batch

  @abc.abstractmethod
  def weight(self, batch: Batch) -> jax.Array:
    """How many units of a prepared batch count: what sums are divided by."""

  @abc.abstractmethod
  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed loss of a prepared (micro-)batch, to be differentiated.

    Args:
      variables: "params" and the other collections.
      batch: what `prepare` returned, or some examples of it.
      key: to be split into as many streams as the task needs.

    Returns:
      (sum, (collections, sums)): what becomes of the collections beside
      "params", and float32 sums, "weight" and "loss" among them.
    """

  @abc.abstractmethod
  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums of a batch of the evaluation split, "weight" among them."""

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Makes the metrics of the sums of a whole split, which are in float64.

    Raises:
      ValueError: if nothing counted.
    """
    return evaluation.means(totals, self.counts)

  def evaluations(
    self, mesh: jax.sharding.Mesh
  ) -> Sequence[evaluation.Evaluation]:
    """What is measured of the model, the one with the headline first.

    Opens the data.
    """
    return [self.evaluate_split(mesh)]

  def evaluate_split(
    self,
    mesh: jax.sharding.Mesh,
    step: Callable[[Variables, Batch], dict[str, jax.Array]] | None = None,
  ) -> evaluation.SplitEvaluation:
    """The evaluation that sums what `evaluate_step`, or `step`, returns."""
    rows = self.config.eval_batch_size
    batches = self.room.eval_batches(
      self.config.data, batch_size=rows, rows=hosts.batch_rows(mesh, rows)
    )
    return evaluation.SplitEvaluation(
      step=step or self.evaluate_step,
      spec=self.batch_spec(rows, train=False),
      batches=batches,
      num_batches=-(-self.info.num_eval_examples // rows),
      summarize=self.summarize,
      mesh=mesh,
    )

  @staticmethod
  @abc.abstractmethod
  def describe(result: Mapping[str, Any]) -> str:
    """The metrics of the first evaluation in one line for people."""

  @staticmethod
  @abc.abstractmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of the first evaluation as `eval.py` has them in JSON."""

  def evaluate(
    self,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    progress: Progress,
    **options: Any,
  ) -> dict[str, Any]:
    """What `eval.py` does: the first evaluation.

    Args:
      variables: of the model.
      mesh: the device mesh.
      progress: takes an iterable and its length, and returns one like it.
      **options: of `evaluate_options`, with their values.
    """
    del options
    return self.evaluate_split(mesh).run(variables, progress=progress)

  def metric_names(self) -> Sequence[str]:
    """Which of `directions` there are for this model."""
    return tuple(self.directions)

  def trainable(self) -> Callable[[str], bool] | None:
    """Tells of a parameter's path whether it is trained; None if all are.

    Beside `config.trainable` and `config.frozen`, for what the job asks for.
    """
    return None

  def files(self) -> Mapping[str, bytes]:
    """What must not change between a run and what uses it, as a vocabulary.

    A run keeps them beside its config, by these names.
    """
    return {}

  def record(self) -> Mapping[str, Any]:
    """What run.json says of the job, such as what the data was."""
    return {}

  @staticmethod
  def adopt(
    config: ml_collections.ConfigDict, workdir: pathlib.PurePath
  ) -> None:
    """Lets the config of a run take its `files` from the run's workdir."""
    del config, workdir

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[evaluation.Evaluation],
    workdir: str,
  ) -> Shown:
    """Makes what a person looks at when training ends; process 0 alone.

    Args:
      variables: of the model.
      evaluations: what `evaluations` returned, with the data that they opened.
      workdir: of the run.
    """
    del variables, evaluations, workdir
    return Shown()

  @classmethod
  def sampling_info(cls, config: ml_collections.ConfigDict) -> Any:
    """What `sample` has to know of the data, without opening it."""
    return cls.room.dataset_info(config.data)

  def sample(self, variables: Variables, **options: Any) -> None:
    """What `sample.py` does: shows what the model makes up.

    Args:
      variables: of the model.
      **options: of `sample_options`, with their values.

    Raises:
      ValueError: if the task has no samples, or for options that do not fit.
    """
    raise ValueError(
      f"task={self.config.task!r} has no samples: its models make nothing up."
    )


def apply_in_training(
  model: nn.Module, variables: Variables, *inputs: Any, **options: Any
) -> tuple[Any, Variables]:
  """Applies a model with train=True.

  Args:
    model: whose collections beside "params" may all move.
    variables: "params" and these.
    *inputs: what the model is called with.
    **options: of `model.apply`, as `rngs`.

  Returns:
    (output, collections): what becomes of the collections.
  """
  names = [name for name in variables if name != "params"]
  output, moved = model.apply(
    variables, *inputs, train=True, mutable=names, **options
  )
  return output, {name: moved[name] for name in names}


def create_model(
  config: ml_collections.ConfigDict, kind: str, **given: Any
) -> nn.Module:
  """The model of a config.

  Args:
    config: of a run.
    kind: what the task needs, see `models.kind`.
    **given: fields that the data give.

  Raises:
    ValueError: if there is no such model, it is of another kind, or a field
      does not fit.
  """
  fields = config.model.to_dict()
  name = fields.pop("name")
  if (found := models.kind(name)) != kind:
    raise ValueError(
      f"model.name={name!r} is of kind {found!r}, but task={config.task!r} "
      f"needs one of models.list(kind={kind!r})."
    )
  return models.create(name, dtype=jnp.dtype(config.dtype), **given, **fields)
