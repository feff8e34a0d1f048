"""What a job is to the training loop: the one contract of all tasks.

The loop, the step, checkpoints and metrics know arrays with a spec, a weight to
divide by, a headline metric and evaluations that run. All else is a task's.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections

Batch = dict[str, jax.Array]
# Of parameters and of any other collection that the model has.
Variables = dict[str, Any]


class Task(abc.ABC):
  """One job; a subclass is one file of `tasks/`.

  All its sums are over what counts, and nothing is divided: only the caller
  knows the whole batch, or the whole split.

  Attributes:
    model: the Flax module.
    unit: what `weight` counts and a throughput is given in, as "images".
    directions: of each metric that a checkpoint can be the best by, whether
      "min" or "max" is better; the first is the headline.
    counts: which sums are numbers of something, shown as they are and not
      divided by the weight.
    progress: metrics of a step that the progress line shows, each with a
      format, as {"accuracy": ".1%"}.
  """

  model: nn.Module
  unit: str
  directions: Mapping[str, str]
  counts: Sequence[str] = ()
  progress: Mapping[str, str] = {"loss": ".4f"}

  @abc.abstractmethod
  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch of `rows` examples, before there is any."""

  @abc.abstractmethod
  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Turns a whole training batch into what `loss` takes.

    Each array keeps the examples on its first axis, so that the result can be
    cut into micro-batches.
    """
    del key
    return batch

  @abc.abstractmethod
  def weight(self, batch: Batch) -> jax.Array:
    """How many units a prepared batch has: what a sum is divided by."""

  @abc.abstractmethod
  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed loss of a prepared (micro-)batch, to be differentiated.

    Args:
      variables: "params" and the other collections.
      batch: what `prepare` returned, or some examples of it.
      key: a task splits it into as many streams as it needs.

    Returns:
      (sum, (collections, sums)): the new values of the collections beside
      "params", and summed metrics, float32 scalars, "weight" among them.
    """

  @abc.abstractmethod
  def evaluations(self, mesh: jax.sharding.Mesh) -> Sequence[Any]:
    """What is measured while training, the one with the headline first.

    Each is a `training.evaluation.Evaluation`, with a name, a period and
    `run(variables, should_stop)`.
    """

  @abc.abstractmethod
  def describe(self, result: Mapping[str, Any]) -> str:
    """One line for people of what the first evaluation returned."""

  def trainable(self) -> Callable[[str], bool] | None:
    """Tells of a parameter's path whether it is trained; None if all are."""
    return None

  def files(self) -> Mapping[str, bytes]:
    """What a run keeps beside its config to be of use elsewhere, by name."""
    return {}

  def show(self, variables: Variables, workdir: str) -> Sequence[str]:
    """Makes what a person looks at when training ends.

    Returns:
      Lines to print after it: files that were written, commands to go on with.
    """
    del variables, workdir
    return ()

  # Options of `sample`, each with a default and a line that says what it is.
  sample_options: Mapping[str, tuple[Any, str]] = {}

  def sample(self, variables: Variables, **options: Any) -> None:
    """Writes what the model makes up to standard output, or to files."""
    raise ValueError(
      f"task={type(self).__name__} makes no samples: its model is no generator."
    )

  @staticmethod
  @abc.abstractmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields of a config that only this task has, "data" among them."""

  @staticmethod
  @abc.abstractmethod
  def dataset_info(config: ml_collections.ConfigDict) -> Any:
    """What has to be known of the data: opens the evaluation split only.

    It has `num_train_examples`, which is None if that is not known without
    opening the training split.
    """
